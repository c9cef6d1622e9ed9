"""Files fitted to the rows: not a byte larger, nearer to bf16 in llama.cpp, resumable, refused without rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import DataError, GateError, MachineError
from gemma_ops.export import gguf_fit, measured_files, quantize
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.fidelity import Conversation, FileDivergence
from gemma_ops.export.gguf_fit import fit_tensors
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.measured_files import MeasuredFile
from gemma_ops.fitting import fit_file, scale_training
from tests.helpers import tiny_models
from tests.helpers.parcel_rows import write_parcels

MACHINE = MachineConfig(device="cpu", workers=1)
WAYS = ("importance", "rounding", "scales")


class Killed(BaseException):
    """The end of a process, as far as it can be tried in one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_parcels(tmp_path_factory.mktemp("data"), range(48), range(100, 116))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made: dict[str, Path] = {}

    def base(kind: Any) -> Path:
        if kind not in made:
            made[kind] = tiny_models.save(kind, tmp_path_factory.mktemp("base") / kind)
        return made[kind]

    return base


def run(out: Path, model: Path, data: Path | None, **settings: Any) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    settings = {"formats": ("q4_0",), "fidelity_rows": 12, "fit_rows": 48, "fit_steps": 24} | settings
    return quantize(out, QuantizeConfig(**settings), MACHINE, model=model, data=data)


@pytest.mark.parametrize("kind", ["e2b", "moe", "unified"])
def test_each_way_brings_the_file_nearer_to_bf16_at_the_same_bytes(tmp_path, bases, data, kind):
    plain = run(tmp_path / "none", bases(kind), data)
    ratios = {}
    for way in WAYS if kind == "e2b" else ("scales",):
        metrics = run(tmp_path / way, bases(kind), data, fit=way)
        report = json.loads((tmp_path / way / "report.json").read_text())["formats"]["q4_0"]
        assert metrics["q4_0/mb"] == plain["q4_0/mb"]
        assert report["fit"]["plain"]["kl"] == pytest.approx(plain["q4_0/kl"], rel=1e-3)
        gain = report["fit"]["gain"]["every_token"]
        assert gain["kl_ratio_interval"][0] <= gain["kl_ratio"] <= gain["kl_ratio_interval"][1]
        assert metrics["q4_0/kl_ratio"] == pytest.approx(gain["kl_ratio"], rel=1e-3)
        ratios[way] = gain["kl_ratio"]
        assert {path.name for path in (tmp_path / way).iterdir()} == {"bf16", "q4_0", "learned.json", "report.json"}
    # Random models are the hardest case: nothing in their weights is redundant.
    assert ratios["scales"] < 0.8
    if len(ratios) > 1:
        assert ratios["scales"] < ratios["rounding"] < 0.95
        assert ratios["importance"] < 1.1


def test_a_fit_that_costs_general_ability_is_refused(monkeypatch):
    """Further from bf16 than the plain file on prompts of no domain, beyond chance."""
    domain, general = ([Conversation([1, 2, last], [1]) for _ in range(8)] for last in (3, 4))
    sizes = {"plain": 1.0, "fitted": 0.5, "fitted general": 0.9}

    def divergence(file: Path, _reference: Path, chosen: list[Conversation], _threads: int) -> FileDivergence:
        factors = [
            sizes.get(f"{file.name} general" if each in general else file.name, sizes[file.name]) for each in chosen
        ]
        kls = [factor * (1 + place % 8) * np.array([0.1, 0.2, 0.3]) for place, factor in enumerate(factors)]
        return FileDivergence(chosen, kls, [kl > 0 for kl in kls])

    def measure() -> MeasuredFile:
        places = (lambda _form: Path("fitted")), (lambda _form: Path("plain"))
        return measured_files.measure_files(*places, ["q4_0"], ["q4_0"], domain, general, 1)["q4_0"]

    monkeypatch.setattr(measured_files, "file_divergence", divergence)
    found = measure().metrics()
    assert (found["kl_ratio"], found["general_kl_ratio"]) == (pytest.approx(0.5), pytest.approx(0.9))
    sizes["fitted general"] = 1.2
    with pytest.raises(GateError, match=r"1\.20 times as large"):
        measure()


def test_formats_of_eight_bits_and_the_tables_stay_plain(tmp_path, bases, data):
    base = bases("e2b")
    run(tmp_path / "none", base, data, formats=("q8_0", "q4_0"))
    run(tmp_path / "fit", base, data, formats=("q8_0", "q4_0"), fit="scales", fit_steps=3)
    same, other = (
        {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / way / "q4_0/model.gguf").tensors}
        for way in ("none", "fit")
    )
    assert (tmp_path / "none/q8_0/model.gguf").read_bytes() == (tmp_path / "fit/q8_0/model.gguf").read_bytes()
    changed = {name for name in same if not np.array_equal(same[name], other[name])}
    assert {
        "token_embd.weight",
        "per_layer_token_embd.weight",
        "blk.0.inp_gate.weight",
        "output_norm.weight",
    } & changed == set()
    assert {"blk.0.attn_q.weight", "blk.5.ffn_down.weight", "blk.0.attn_norm.weight"} <= changed


def test_the_same_rows_and_seed_give_the_same_bytes_and_a_killed_fit_goes_on(tmp_path, bases, data, monkeypatch):
    base = bases("e2b")
    run(tmp_path / "whole", base, data, fit="scales")
    steps: list[int] = []

    def noted(found: Any) -> Any:
        for step, loss in found:
            steps.append(step)
            yield step, loss

    def killed(*arguments: Any, **named: Any) -> Any:
        for step, loss in train(*arguments, **named):
            steps.append(step)
            if step == 23:
                raise Killed
            yield step, loss

    train = scale_training.train_scales
    monkeypatch.setattr(fit_file, "train_scales", killed)
    with pytest.raises(Killed):
        run(tmp_path / "killed", base, data, fit="scales")
    rounded = list((tmp_path / "killed/fit/q4_0/rounded").iterdir())
    assert len(rounded) == sum(each.type != "F32" for each in fit_tensors(plan_tensors(MergedCheckpoint(base), "q4_0")))
    monkeypatch.setattr(fit_file, "round_matrix", None)  # everything is rounded already
    monkeypatch.setattr(fit_file, "train_scales", lambda *given, **named: noted(train(*given, **named)))
    steps.clear()
    run(tmp_path / "killed", base, data, fit="scales")
    assert steps[0] == 21
    assert (tmp_path / "whole/q4_0/model.gguf").read_bytes() == (tmp_path / "killed/q4_0/model.gguf").read_bytes()


def test_a_fit_without_training_rows_is_refused(tmp_path, bases, data):
    with pytest.raises(DataError, match="need training rows"):
        run(tmp_path / "none", bases("e2b"), None, fit="rounding")
    empty = tmp_path / "data"
    shutil.copytree(data, empty)
    (empty / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="nothing to fit"):
        run(tmp_path / "empty", bases("e2b"), empty, fit="rounding")


def test_a_fit_that_memory_cannot_hold_is_refused_before_the_model_is_loaded(tmp_path, bases, data, monkeypatch):
    monkeypatch.setattr(gguf_fit, "free_memory", lambda: 1e7)
    monkeypatch.setattr(gguf_fit, "load_model", None)
    with pytest.raises(MachineError, match=r"needs about 0\.\d GB of memory .* 0\.0 GB are free"):
        run(tmp_path / "q", bases("e2b"), data, fit="scales")


def test_a_fitted_file_has_the_class_of_the_rows_that_it_was_fitted_to(tmp_path, bases, data):
    run(tmp_path / "q", bases("e2b"), data, fit="rounding")
    assert json.loads((tmp_path / "q/q4_0/learned.json").read_text())["privacy"] == "paid"
    reader = gguf.GGUFReader(tmp_path / "q/q4_0/model.gguf")
    assert reader.fields["gemma_ops.learned"].contents() == "paid"


def test_formats_below_eight_bits_are_fitted():
    settings = QuantizeConfig(fit="scales")
    assert [form for form in ("bf16", "q8_0", "q6_k", "q4_k_m", "q4_0") if gguf_fit.is_fitted(settings, form)] == [
        "q6_k", "q4_k_m", "q4_0",
    ]  # fmt: skip
    assert not gguf_fit.is_fitted(QuantizeConfig(), "q4_0")
