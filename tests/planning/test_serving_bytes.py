"""Bytes of serving, and the shape of a model read from the head of its GGUF file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest

from gemma_ops.errors import ModelError
from gemma_ops.family.formats import GGUF
from gemma_ops.family.gguf_shape import gguf_shape
from gemma_ops.family.shape import Shape
from gemma_ops.family.sizes import SIZES
from gemma_ops.modeling.checkpoint_source import read_model_config
from gemma_ops.nano import WEIGHTS
from gemma_ops.planning.serving_bytes import gguf_bytes, serving_bytes
from tests.helpers.live_server import make_files, serving

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_a_gguf_file_says_the_shape_of_its_checkpoint(tmp_path):
    shape, wanted = (
        gguf_shape(make_files(tmp_path) / "q8_0" / "model.gguf"),
        Shape.from_config(read_model_config(WEIGHTS)),
    )
    assert shape.layers == wanted.layers
    assert (shape.hidden, shape.vocab, shape.context, shape.softcap, shape.per_layer_dim) == (
        wanted.hidden, wanted.vocab, wanted.context, pytest.approx(wanted.softcap), wanted.per_layer_dim,
    )  # fmt: skip
    for body in (b"no", b"GGUF\x03\x00\x00\x00", b"GGUF" + bytes(40)):
        (tmp_path / "bad.gguf").write_bytes(body)
        with pytest.raises(ModelError, match=r"bad\.gguf is no GGUF file of Gemma 4"):
            gguf_shape(tmp_path / "bad.gguf")


def test_what_serving_takes_grows_with_slots_and_context():
    shape = SIZES["E2B"].shape
    one = serving_bytes(shape, 3e9, slots=1, context=8192)
    two = serving_bytes(shape, 3e9, slots=2, context=8192)
    assert two.cache == 2 * one.cache == serving_bytes(shape, 3e9, slots=1, context=16384).cache
    assert one.window_cache < one.cache  # sliding layers are kept whole by llama.cpp
    own = [layer for layer in shape.layers if not layer.shares_kv]
    assert one.cache == 8192 * sum(4 * layer.kv_heads * layer.head_dim for layer in own)
    assert one.total == 3e9 + one.cache + one.workspace


def test_sliding_layers_may_keep_their_window_only():
    """31B in 4 bits at 4 slots of 4,096 tokens fits a card of 24 GB so."""
    shape = SIZES["31B"].shape
    weights = gguf_bytes(shape, GGUF["q4_0"])
    whole = serving_bytes(shape, weights, slots=4, context=4096)
    kept = serving_bytes(shape, weights, slots=4, context=4096, windowed=True)
    assert kept.cache == kept.window_cache == whole.window_cache < whole.cache / 2
    own = [layer for layer in shape.layers if not layer.shares_kv]
    tokens = {layer: min(4096, layer.window + 512) if layer.window else 4096 for layer in own}
    assert kept.cache == 4 * sum(tokens[layer] * 4 * layer.kv_heads * layer.head_dim for layer in own)
    assert kept.total < 23.5 * 2**30 < whole.total


def test_an_engine_whose_sliding_layers_keep_their_window_answers_the_same(tmp_path):
    """Over prompts and replies many times longer than nano's window of 64 tokens."""
    file = make_files(tmp_path) / "q8_0" / "model.gguf"
    said = []
    for windowed in (False, True):
        with serving(file, context=1024, slots=2, window_cache=windowed) as live:
            said.append([])
            for words in ("the invoice is wrong, ", "it crashes each morning; "):
                body = {"model": "nano", "prompt": words * 60, "max_tokens": 200, "temperature": 0}
                found = httpx2.post(f"{live.url}/v1/completions", json=body, timeout=120).json()
                said[-1].append((found["choices"][0]["text"], found["usage"]["prompt_tokens"]))
    assert said[0] == said[1]
    assert all(tokens > 200 for _, tokens in said[0])


def test_a_cache_in_eight_bits_takes_half_the_memory_and_says_nearly_the_same(tmp_path):
    shape = SIZES["E2B"].shape
    whole, half = (serving_bytes(shape, 3e9, slots=2, context=8192, cache=name) for name in ("f16", "q8_0"))
    assert half.cache == pytest.approx(whole.cache * 8.5 / 16)
    file = make_files(tmp_path) / "q8_0" / "model.gguf"
    said = {}
    for cache in ("f16", "q8_0"):
        with serving(file, context=512, slots=1, kv_cache=cache) as live:
            body = {"model": "nano", "prompt": "the invoice is wrong, " * 30, "max_tokens": 24, "temperature": 0,
                    "logprobs": 1}  # fmt: skip
            found = httpx2.post(f"{live.url}/v1/completions", json=body, timeout=120).json()["choices"][0]
            said[cache] = (found["text"], found["logprobs"]["token_logprobs"])
    assert said["f16"][0] == said["q8_0"][0]
    gaps = [abs(one - two) for one, two in zip(said["f16"][1], said["q8_0"][1], strict=True)]
    assert 0 < max(gaps) < 0.2  # another cache, and hardly another model


@pytest.mark.parametrize("cache", ["q4_0", "q4_1", "iq4_nl"])
def test_a_cache_in_four_bits_is_refused_with_the_way_out(cli, cache):
    done = cli("serve", "nowhere", "--set", f"serve.kv_cache={cache}")
    assert done.returncode == 2
    assert f"serve.kv_cache {cache} is refused" in " ".join(done.stderr.split())
    assert "q8_0 takes half the memory" in " ".join(done.stderr.split())


@pytest.mark.parametrize("form", ["bf16", "q8_0", "q4_0"])
def test_the_size_of_a_file_is_known_before_it_is_made(tmp_path, form):
    """Beside the weights a file holds its tokenizer, which nano's is small beside."""
    size = (make_files(tmp_path) / form / "model.gguf").stat().st_size
    told = gguf_bytes(Shape.from_config(read_model_config(WEIGHTS)), GGUF[form])
    assert told < size < told + 400_000


def test_the_plan_tells_what_fits_and_how_fast_it_may_be(cli):
    told = cli(
        "plan", str(CONFIG), "--set", "model.base=google/gemma-4-E2B-it", "--serve", "--device", "rtx-4090", "--json"
    )
    body = json.loads(told.stdout)
    by_name = {one["format"]: one for one in body["formats"]}
    assert all(one["fits"] for one in body["formats"])
    assert by_name["q4_0"]["tokens_per_second"] > by_name["q8_0"]["tokens_per_second"]
    more = cli("plan", str(CONFIG), "--set", "model.base=google/gemma-4-E2B-it", "--serve", "--device", "rtx-4090",
               "--json", "--set", "serve.replicas=3")  # fmt: skip
    thrice = json.loads(more.stdout)
    assert [one["total"] for one in thrice["formats"]] == [3 * one["total"] for one in body["formats"]]
    assert thrice["replicas"] == 3
    assert {one["format"] for one in thrice["formats"] if not one["fits"]} == {"bf16", "merged"}
    large = cli("plan", str(CONFIG), "--set", "model.base=google/gemma-4-31B-it", "--serve", "--device", "rtx-4090",
                "--set", "serve.context=1024")  # fmt: skip
    fits = {line.split()[0]: line.split()[-2] for line in large.stdout.splitlines()[2:12]}
    assert (fits["bf16"], fits["q8_0"], fits["q4_0"]) == ("no", "no", "yes")


def test_what_does_not_fit_is_refused_before_it_is_loaded(tmp_path, cli):
    file = make_files(tmp_path) / "q8_0" / "model.gguf"
    done = cli("serve", f"{file}@{WEIGHTS}", "--set", "serve.context=1000000000", "--set", "serve.port=0")
    twice = cli("serve", f"{file}@{WEIGHTS}", "--set", "serve.context=1000000000", "--set", "serve.replicas=2")
    needs = [float(re.search(r"needs ([\d.]+) GiB", one.stderr)[1]) for one in (done, twice)]
    assert needs[1] == pytest.approx(2 * needs[0], rel=1e-3)
    assert done.returncode == 5
    assert re.search(r"needs [\d.]+ GiB \(weights 0\.00 GiB", done.stderr)
    assert "lower serve.slots or serve.context" in done.stderr
