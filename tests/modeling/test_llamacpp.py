"""GGUF files in llama.cpp: the same distributions, answers and tokens as the checkpoint they came from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemma_ops.data import chat
from gemma_ops.errors import MachineError, ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.modeling import generate, llamacpp_library
from gemma_ops.modeling.llamacpp import GGUF
from gemma_ops.modeling.llamacpp_library import GgufLogits
from gemma_ops.modeling.llamacpp_server import asked_server
from gemma_ops.modeling.load import load_model
from gemma_ops.nano import WEIGHTS
from tests.helpers import patience, tiny_models

TOKENIZER = chat.load_tokenizer(WEIGHTS)
Pairs = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """A checkpoint of each kind whose likeliest tokens are clear, and its bf16 GGUF file; made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def pair(kind: Any) -> tuple[Path, Path]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("pair")
            base = tiny_models.save(kind, folder / kind)
            source = MergedCheckpoint(base)
            write_gguf(source, plan_tensors(source, "bf16"), folder / "model.gguf", threads=1)
            made[kind] = (base, folder / "model.gguf")
        return made[kind]

    return pair


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random token ids after `<bos>`, of different lengths, longer than the sliding window of 16."""
    random = np.random.default_rng(seed)
    return [[2, *random.integers(400, 2000, size=int(size)).tolist()] for size in random.integers(4, 50, size=count)]


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_distributions_and_greedy_tokens_are_those_of_transformers(pairs: Pairs, kind: str) -> None:
    base, file = pairs(kind)
    model = load_model(base, weights="fp32")
    random = prompts(4)
    with GGUF(file) as gguf, GgufLogits(file, context=64) as logits, torch.inference_mode():
        divergences, gaps = [], []
        for ids in random:
            expected = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
            found = np.concatenate(list(logits.read_logits(ids)))
            assert found.shape == expected.shape
            ours = torch.from_numpy(found).double().log_softmax(-1).numpy()
            kls = (np.exp(expected) * (expected - ours)).sum(-1)
            divergences += kls.tolist()
            for place, row in enumerate(expected):
                best, second = np.sort(row)[::-1][:2]
                if row.argmax() != found[place].argmax() and kls[place] < 0.01:
                    gaps.append(best - second)
        # bf16 weights meet bf16 activations in llama.cpp; a router on an edge may choose another expert.
        assert np.median(divergences) < 1e-3
        assert np.mean(np.array(divergences) < 0.05) > (0.95 if kind == "moe" else 0.999)
        assert all(gap < 0.1 for gap in gaps), "the likeliest token differs where it is not a near tie"
        for ids in random[:2]:
            reply = gguf.continuation(ids, 12)
            _assert_greedy(model, ids, reply)


def _assert_greedy(model: Any, prompt: list[int], reply: list[int]) -> None:
    """Each token of the reply is transformers' own choice for that prefix, near ties aside."""
    logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].float()
    behind = logits.max(-1).values - logits[range(len(reply)), reply]
    assert float(behind.max()) < 0.15


def test_answers_stop_where_gemma_stops(tmp_path: Path) -> None:
    """A model that soon says `<turn|>`: both engines end there, with the same text and counts."""
    from safetensors.torch import load_file, save_file

    base = tiny_models.save("dense31", tmp_path / "base")
    tokenizer = chat.load_tokenizer(base)
    turn = tokenizer.token_to_id("<turn|>")
    state = load_file(base / "model.safetensors")
    name = "model.language_model.embed_tokens.weight"
    state[name][turn] = 2.2 * state[name][turn]
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    source = MergedCheckpoint(base)
    write_gguf(source, plan_tensors(source, "bf16"), tmp_path / "model.gguf", threads=1)
    asked = prompts(12, seed=5)
    theirs = list(
        generate.answer_prompts(load_model(base, weights="fp32"), tokenizer, asked, max_new_tokens=20, batch_size=4)
    )
    with GGUF(tmp_path / "model.gguf") as gguf:
        ours = list(gguf.answer(asked, TOKENIZER, max_new_tokens=20, batch_size=4))
    assert {answer.end for answer in ours} == {"stop", "length"}
    same = [
        (one.text, one.end, one.prompt_tokens, one.new_tokens) == (two.text, two.end, two.prompt_tokens, two.new_tokens)
        for one, two in zip(ours, theirs, strict=True)
    ]
    assert sum(same) >= 9, "near ties may send a few replies another way"
    assert all("<turn|>" not in answer.text for answer in ours)


def test_answers_keep_their_order_and_repeat_exactly(pairs: Pairs) -> None:
    asked = prompts(7, seed=3)
    with GGUF(pairs("e2b")[1]) as gguf:
        one = list(gguf.answer(asked, TOKENIZER, max_new_tokens=10, batch_size=3))
        two = list(gguf.answer(asked, TOKENIZER, max_new_tokens=10, batch_size=3))
        single = list(gguf.answer(asked, TOKENIZER, max_new_tokens=10, batch_size=1))
    assert [answer.text for answer in one] == [answer.text for answer in two]
    assert [answer.prompt_tokens for answer in one] == [len(ids) for ids in asked]
    assert sum(x.text == y.text for x, y in zip(one, single, strict=True)) >= 6
    assert all((answer.end == "length") == (answer.new_tokens == 10) for answer in one)
    assert len({answer.text for answer in one}) > 1


def test_a_prompt_that_does_not_fit_is_an_error_of_its_own(pairs: Pairs) -> None:
    with GGUF(pairs("e2b")[1], context=64) as gguf:
        ends = [
            a.end
            for a in gguf.answer([[2, 500], [2] + [500] * 600, [2, 501]], TOKENIZER, max_new_tokens=4, batch_size=3)
        ]
    assert ends == ["length", "error", "length"]


def test_tokenizes_as_the_checkpoints_tokenizer_does(pairs: Pairs) -> None:
    base, file = pairs("e2b")
    tokenizer = chat.load_tokenizer(base)
    conversation = chat.render_chat(
        [
            {"role": "system", "content": "Réponds en français 🇫🇷."},
            {"role": "user", "content": "  tabs\tand\n\n\nlines; order #1047, 3.5 kg — 日本語 العربية e\u0301\u200d"},
            {"role": "assistant", "content": '{"a": [1, null], "b": "<b>"}'},
        ]
    ).text
    probes = [
        conversation,
        "",
        " ",
        "\n",
        "\n \n",
        "a\n\nb",
        "🙂👩‍👩‍👧",
        "<|turn>",
        "<|turn >",
        "<turn|>x<eos>",
        "\x00\x07",
        "▁a ▁",
    ]
    with GGUF(file) as gguf:
        for probe in probes:
            assert gguf.tokenize(probe) == tokenizer.encode(probe, add_special_tokens=False).ids, probe


def test_llama_cpp_renders_the_embedded_template_as_training_does(pairs: Pairs) -> None:
    """`<bos>` aside, which llama.cpp adds when it tokenizes."""
    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}}
    tools = [{"type": "function", "function": {"name": "weather", "description": "now", "parameters": parameters}}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'Read {"a": 1}'},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "And outside?"},
    ]
    with GGUF(pairs("e2b")[1]) as gguf:
        gguf.tokenize("")  # starts it
        for given in (None, tools):
            options = {"tools": given} if given else {}
            body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}, **options}
            expected = chat.render_chat(messages, given, add_generation_prompt=True).text
            found = asked_server(gguf._socket, "POST", "/apply-template", body)
            assert "<bos>" + found["prompt"] == expected


def test_pieces_of_a_sequence_give_the_same_logits(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts(1, seed=3)[0]
    with GgufLogits(pairs("e2b")[1], context=len(ids)) as logits:
        (whole,) = logits.read_logits(ids)
        (again,) = logits.read_logits(ids)
        np.testing.assert_array_equal(whole, again)
        with pytest.raises(ValueError, match="do not fit"):
            next(logits.read_logits([*ids, 5]))
    monkeypatch.setattr(llamacpp_library, "_CHUNK", 16)
    monkeypatch.setattr(llamacpp_library, "_LEAST_CHUNK", 4)
    with GgufLogits(pairs("e2b")[1], context=len(ids)) as logits:
        pieces = list(logits.read_logits(ids))
    assert [len(piece) for piece in pieces[:-1]] == [16] * (len(pieces) - 1)
    assert len(pieces) > 1
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=0.02)


def test_another_interface_of_llamacpp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    llamacpp_library.llamacpp_library.cache_clear()
    monkeypatch.setattr(llamacpp_library, "_DEFAULTS", (512, 512, 512))
    with pytest.raises(MachineError, match=r"begin with \(512, 2048, 512\)"):
        llamacpp_library.llamacpp_library()
    monkeypatch.undo()
    monkeypatch.setitem(llamacpp_library._SIGNATURES, "llama_of_tomorrow", (None, ()))
    with pytest.raises(MachineError, match=r"lacks .*llama_of_tomorrow"):
        llamacpp_library.llamacpp_library()


def test_files_that_cannot_be_run_are_named(tmp_path: Path, pairs: Pairs) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        GGUF(tmp_path / "absent.gguf")
    (tmp_path / "cut.gguf").write_bytes(pairs("e2b")[1].read_bytes()[:200_000])
    with GGUF(tmp_path / "cut.gguf") as gguf, pytest.raises(ModelError, match=r"can't load .*cut\.gguf"):
        gguf.continuation([2, 5], 2)


def test_without_the_package_the_fix_is_said_and_with_it_nothing_is_printed(pairs: Pairs) -> None:
    def python(code: str) -> subprocess.CompletedProcess[str]:
        return patience.run([sys.executable, "-c", code], seconds=120)

    file = str(pairs("e2b")[1])
    use = f"from pathlib import Path; from gemma_ops.modeling.llamacpp import GGUF; g = GGUF(Path({file!r})); "
    without = python(f"import sys; sys.modules['xllamacpp'] = None; {use}")
    assert "MachineError" in without.stderr
    assert "pip install 'gemma-ops[gguf]'" in without.stderr
    quiet = python(f"{use} print(len(g.continuation([2, 700], 3))); g.close()")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "3\n", "")
