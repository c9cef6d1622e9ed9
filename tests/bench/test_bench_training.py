"""`bench train`: its arithmetic, its order of processes, what it refuses, and one real run on the tiny shape."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from gemma_ops import family
from gemma_ops.bench.training import BenchRunner, bench_report, bench_rows, bench_shapes, make_spec, picture, suite
from gemma_ops.bench.training.arms import ARMS
from gemma_ops.bench.training.arms.axolotl import packed_rows
from gemma_ops.bench.training.bench_child import gate_spec
from gemma_ops.bench.training.bench_spec import from_json, parameters
from gemma_ops.errors import ConfigError, GateError, OpsError

TINY = make_spec("tiny", repeats=3, steps=2, arms=("trl", "trl-packed", "gemma-ops", "unsloth"))


def _result(arm, repeat, seconds, peak=100, loss=6.0, **more):
    return {
        "arm": arm, "repeat": repeat, "user": [seconds] * 2, "wall": [10 * seconds] * 2, "peak_bytes": peak,
        "loaded_bytes": 1000,
        "losses": [loss], "agreement": {"cosine": 0.9995, "error": 0.03}, "settings": {}, **more,
    }  # fmt: skip


def _body(results, spec=TINY):
    known = {name: {"what": "", "choices": "", "absent": None} for name in spec.arms}
    known["unsloth"] = {"what": "", "choices": "", "absent": "not installed"}
    body = {"spec": spec.to_json(), "machine": {"cpu": "a CPU"}, "arms": known, "results": results, "gate": {}}
    return body | {"summary": bench_report.summary(body)}


def test_medians_ratios_and_spreads():
    spent = {"trl": (4.0, 5.0, 8.0), "trl-packed": (2.0, 4.0, 2.5), "gemma-ops": (1.0, 1.25, 4.0)}
    body = _body([_result(arm, i, t) for i in range(3) for arm, ts in spent.items() for t in (ts[i],)])
    tokens = body["summary"]["facts"]["tokens"]
    arm = body["summary"]["arms"]["gemma-ops"]
    assert arm["tokens_per_second"] == pytest.approx(tokens / 1.25)  # user seconds, not wall: this is a CPU
    assert (arm["lowest"], arm["highest"]) == (pytest.approx(tokens / 4), pytest.approx(tokens))
    assert arm["ratios"]["trl"] == {
        "median": pytest.approx(5 / 1.25),
        "lowest": pytest.approx(8 / 4),  # repeats are compared with those that ran beside them
        "highest": pytest.approx(4.0),
    }
    assert arm["ratios"]["trl-packed"]["median"] == pytest.approx(2.5 / 1.25)
    assert body["summary"]["arms"]["unsloth"] == {"absent": "not installed"}
    assert body["summary"]["arms"]["trl"]["cosine"] == 1.0


def test_a_gpu_is_timed_by_the_wall():
    spec = replace(TINY, device="cuda")
    body = _body([_result("trl", 0, 1.0)], spec)
    facts = body["summary"]["facts"]
    assert body["summary"]["arms"]["trl"]["tokens_per_second"] == pytest.approx(facts["tokens"] / 10)


def test_a_failed_arm_is_told_and_the_others_stand():
    body = _body([_result("trl", 0, 2.0), {"arm": "gemma-ops", "repeat": 0, "error": "out of memory"}])
    assert body["summary"]["arms"]["gemma-ops"] == {"absent": "out of memory"}
    lines = {row[0]: row for row in bench_report.report_table(body)}
    assert lines["gemma-ops"][1] == "out of memory"
    assert lines["trl"][2] == "1.00x"
    assert all(len(row) == len(bench_report.HEAD) for row in lines.values())


def test_the_picture_is_whole_and_names_every_arm():
    body = _body([_result("trl", 0, 2.0), _result("gemma-ops", 0, 0.5)])
    drawn = ET.fromstring(picture.svg(body))
    text = " ".join(element.text or "" for element in drawn.iter() if element.tag.endswith("text"))
    assert "gemma-ops" in text
    assert "4.00x" in text
    assert "unsloth: not installed" in text


def test_rows_are_the_same_for_all_and_like_chats():
    spec = make_spec("cpu", batch=400, micro_batch=4)
    drawn = bench_rows.draw_rows(spec, 262_144)
    assert drawn == bench_rows.draw_rows(spec, 262_144)
    assert drawn != bench_rows.draw_rows(replace(spec, seed=1), 262_144)
    facts = bench_rows.bench_facts(drawn, 4)
    assert facts["tokens"] / 400 == pytest.approx(297, rel=0.02)
    assert facts["slots_per_token_padded"] == pytest.approx(2.06, rel=0.05)  # of 20,000 rows of this distribution
    assert facts["labelled"] == pytest.approx(0.6, abs=0.03)
    assert facts["longest"] == 2048
    for row in drawn:
        assert row.labels[0] == -100
        assert all(label in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True))


def test_a_spec_says_what_cannot_be():
    with pytest.raises(ConfigError, match="unknown size"):
        make_spec("e3b")
    with pytest.raises(ConfigError, match="don't fit packed rows"):
        make_spec("cpu", longest=4096, row_length=2048)
    with pytest.raises(ConfigError, match="must divide"):
        make_spec("cpu", batch=6, micro_batch=4)
    with pytest.raises(ConfigError, match="can't be cut to 12"):
        make_spec("e2b", layers=12)
    with pytest.raises(ConfigError, match="unknown arm 'trlx'"):
        BenchRunner(replace(TINY, arms=("trlx",)), folder=None, tell=print)
    assert from_json(json.loads(json.dumps(TINY.to_json()))) == TINY


@pytest.mark.parametrize("size", [key.lower() for key in family.SIZES])
def test_true_sizes_and_cut_stacks_keep_their_pattern(size):
    whole = family.SIZES[next(key for key in family.SIZES if key.lower() == size)].shape
    assert parameters(make_spec(size)) == whole.counts().text
    period = next(i for i, layer in enumerate(whole.layers) if layer.window is None) + 1
    cut = family.Shape.from_config(bench_shapes.text_config(size, 2 * period))
    assert len(cut.layers) == 2 * period
    assert [layer.window for layer in cut.layers] == [layer.window for layer in whole.layers[: 2 * period]]
    assert cut.shares_kv == whole.shares_kv
    assert not cut.layers[period - 1].shares_kv


class _Machine:
    """Stands in for processes: answers jobs from a script and notes them."""

    def __init__(self, monkeypatch, *, error=1e-7, fail=()):
        self.jobs, self.error, self.fail = [], error, fail
        monkeypatch.setattr(BenchRunner, "_child", self.child)

    def child(self, kind, **more):
        self.jobs.append((kind, more.get("arm")))
        if kind == "gate":
            return {"gate": {name: {"cosine": 1.0, "error": self.error, "loss": 6.0} for name in more["arms"]}}
        if kind == "time":
            if more["arm"] in self.fail:
                return {"error": "out of memory"}
            made = _result(more["arm"], 0, 1.0)
            return {key: value for key, value in made.items() if key not in ("arm", "repeat", "agreement")}
        return {}


def _run(folder, spec=TINY, **more):
    return BenchRunner(spec, folder, lambda text: None, **more).run()


def test_arms_take_turns_after_the_gate_and_nothing_is_measured_twice(tmp_path, monkeypatch):
    there = _Machine(monkeypatch)
    body = _run(tmp_path)
    one_round = [("time", "trl"), ("time", "trl-packed"), ("time", "gemma-ops")]
    assert there.jobs == [("gate", None), ("save", None), *one_round * 3]
    assert body["arms"]["unsloth"]["absent"] == "not installed"
    assert (tmp_path / "bench.svg").is_file()
    there.jobs.clear()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").touch()
    again = _run(tmp_path, replace(TINY, repeats=4))
    assert there.jobs == one_round
    assert [r["repeat"] for r in again["results"] if r["arm"] == "trl"] == [0, 1, 2, 3]
    with pytest.raises(OpsError, match="holds another measurement"):
        _run(tmp_path, replace(TINY, batch=16))


def test_other_gradients_mean_no_numbers(tmp_path, monkeypatch):
    there = _Machine(monkeypatch, error=2e-5)
    for _ in range(2):  # the second time from the folder
        with pytest.raises(GateError, match=r"differ from stock TRL's by 2\.0e-05"):
            _run(tmp_path)
    assert there.jobs == [("gate", None)]
    assert "results" not in json.loads((tmp_path / "bench.json").read_text()).get("summary", {})


def test_an_arm_out_of_memory_is_tried_once(tmp_path, monkeypatch):
    there = _Machine(monkeypatch, fail=("trl-packed",))
    body = _run(tmp_path)
    assert there.jobs.count(("time", "trl-packed")) == 1
    assert there.jobs.count(("time", "gemma-ops")) == 3
    assert body["summary"]["arms"]["trl-packed"] == {"absent": "out of memory"}


def test_after_the_deadline_nothing_starts(tmp_path, monkeypatch):
    there = _Machine(monkeypatch)
    body = _run(tmp_path, deadline=0.0)
    assert there.jobs == []
    assert body["summary"]["arms"]["trl"] == {"absent": "not measured"}


def test_the_suite_covers_the_sizes_and_goes_on(tmp_path, monkeypatch):
    specs = suite.gpu_suite()
    assert len({spec.name for spec in specs}) == len(specs) == 22
    assert {spec.row_length for spec in specs} == {2048, 4096, 8192}
    assert all(spec.device == "cuda" and spec.micro_tokens == spec.row_length for spec in specs)
    there = _Machine(monkeypatch, fail=("trl",))
    told = []
    found = suite.run_suite(specs[:2], tmp_path, told.append, command="", minutes=None)
    assert list(found) == ["e2b-bf16-300-8192", "31b-nf4-300-4096"]
    jobs = copy.copy(there.jobs)
    suite.run_suite(specs[:2], tmp_path, told.append, command="", minutes=None)
    assert there.jobs == jobs
    assert json.loads((tmp_path / "suite.json").read_text()).keys() == found.keys()


def test_peers_are_listed_with_what_they_need():
    for name in ("unsloth", "axolotl"):
        arm = ARMS[name]
        assert arm.packages
        assert not arm.on_cpu
        assert arm.from_folder
    assert packed_rows([5, 4, 3, 3], 8) == 2
    assert packed_rows([8, 8, 1], 8) == 3


def test_adapters_start_alike_whatever_the_class_and_gradients_are_compared_whole():
    import torch

    from gemma_ops.bench.training.measure import agreement, same_adapter

    class Model:
        def __init__(self, prefix):
            self.parts = {
                f"{prefix}layers.0.self_attn.q_proj.lora_{kind}.default.weight": torch.nn.Parameter(torch.zeros(4, 4))
                for kind in "AB"
            }

        def named_parameters(self):
            return self.parts.items()

    one, other = Model("base_model.model.model."), Model("model.language_model.")
    same_adapter(one, 3)
    same_adapter(other, 3)
    for mine, theirs in zip(one.parts.values(), other.parts.values(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.abs().sum() > 0
    base = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])}
    assert agreement(base, base) == {"cosine": pytest.approx(1.0), "error": 0.0}
    turned = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([5.0])}
    assert agreement(turned, base)["cosine"] == pytest.approx(25 / (50 * 25) ** 0.5)
    assert agreement(turned, base)["error"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one arm only, the first: b"):
        agreement({"a": base["a"]}, base)


def test_made_up_models_are_seeded_and_hold_what_a_loader_would_give():
    import torch

    from gemma_ops.family import Shape
    from gemma_ops.modeling import made_up
    from gemma_ops.modeling.audit import audit_model

    text = bench_shapes.text_config("tiny")
    one, two, other = (made_up.build_made_up(text, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    held = made_up.build_made_up(text, ple="host")
    assert torch.equal(held.model.embed_tokens_per_layer.weight, one["model.embed_tokens_per_layer.weight"])
    rotary = held.model.rotary_emb.sliding_attention_inv_freq
    assert rotary.dtype == torch.float32
    assert rotary[0] == 1.0
    mixture = text | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
    for weights in ("bf16", "nf4", "fp32"):
        made = made_up.build_made_up(mixture, weights=weights, experts=weights)
        found = {line.component: line.kind for line in audit_model(made, Shape.from_config(mixture), weights)}
        assert found["experts"] == found["mlp"] == weights
        assert found["router"] == ("fp32" if weights == "fp32" else "bf16")
    for size in family.SIZES:
        with torch.device("meta"):
            made = made_up.skeleton(bench_shapes.text_config(size.lower()), torch.bfloat16)
        assert sum(p.numel() for p in made.parameters()) == family.SIZES[size].shape.counts().text


@pytest.mark.slow
def test_the_tiny_shape_end_to_end(cli, tmp_path):
    done = cli(
        "bench", "train", "--size", "tiny", "--repeats", 1, "--arms", "trl,gemma-ops,unsloth", "--json", "--out",
        "here",
        check=True,
    )  # fmt: skip
    body = json.loads(done.stdout)
    gate = gate_spec(from_json(body["spec"]))
    assert gate.longest > 4 * bench_shapes.text_config("tiny")["sliding_window"]  # else windows are not tested by it
    assert body["gate"]["gemma-ops"]["error"] < 1e-5
    arms = body["summary"]["arms"]
    assert arms["gemma-ops"]["cosine"] > 0.995
    assert abs(arms["gemma-ops"]["loss_difference"]) < 2e-3
    assert arms["trl"]["settings"]["rows_per_forward"] == 4
    assert arms["unsloth"]["absent"] == "not installed"
    for name in ("trl", "gemma-ops"):
        (result,) = [one for one in body["results"] if one["arm"] == name]
        assert len(result["user"]) == 1
        assert result["user"][0] > 0
        assert result["peak_bytes"] > 0
        assert result["trainable"] == 208_896
    folder = tmp_path / "here" / "tiny-bf16-40-120"
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.svg", "child.log"]
