"""The file `mixed`: within its bytes, nearer to bf16 than a file of one type, careful with tables, the same when
resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from pydantic import ValidationError

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.export import mixed_types, quantize
from gemma_ops.privacy.classes import learned_class
from tests.helpers import tiny_models
from tests.helpers.parcel_rows import write_parcels

MACHINE = MachineConfig(device="cpu", workers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_parcels(tmp_path_factory.mktemp("data"), range(16), range(100, 108))


@pytest.fixture(scope="module")
def model() -> Path:
    return tiny_models.NANO


def run(out: Path, model: Path, data: Path | None, **settings: Any) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    given = {"formats": ("q4_0", "mixed"), "fidelity_rows": 12, "fit_rows": 24} | settings
    return quantize(out, QuantizeConfig(**given), MACHINE, model=model, data=data)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, data) -> tuple[Path, dict[str, float], int]:
    """A step with a mixed file of 3 % more bytes than its q4_0 file has."""
    first = tmp_path_factory.mktemp("uniform") / "out"
    run(first, model, data, formats=("q4_0",))
    size = int(1.03 * (first / "q4_0" / "model.gguf").stat().st_size)
    out = tmp_path_factory.mktemp("mixed") / "out"
    return out, run(out, model, data, budget=size), size


def types(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


def test_a_few_bytes_where_they_matter_bring_the_file_much_nearer_to_bf16(made):
    out, metrics, size = made
    file = out / "mixed" / "model.gguf"
    assert 0.97 * size < file.stat().st_size <= size
    assert metrics["mixed/kl"] < 0.8 * metrics["q4_0/kl"]
    report = json.loads((out / "report.json").read_text())["formats"]["mixed"]
    told, found = metrics["mixed/predicted_kl"], report["fidelity"]["every_token"]["kl"]
    assert 0.4 < told / found < 2
    assert len(set(types(file).values()) - {"F32", "BF16"}) > 1
    assert {name: kind for name, kind in types(file).items() if name in report["mix"]["types"]} == report["mix"][
        "types"
    ]


def test_the_frontier_says_what_other_sizes_would_reach(made):
    out, metrics, size = made
    mix = json.loads((out / "report.json").read_text())["formats"]["mixed"]["mix"]
    sizes, harms = zip(*mix["frontier"], strict=True)
    assert list(sizes) == sorted(sizes)
    assert sizes[0] < size < sizes[-1]
    assert harms[-1] < metrics["mixed/predicted_kl"] < harms[0]


def test_tables_keep_eight_bits_unless_fewer_are_harmless(made, tmp_path, model, data, monkeypatch):
    """With bits for the whole file in the place of its bytes."""
    _, _, size = made
    monkeypatch.setattr(mixed_types, "_HARMLESS", 0)
    assert _guarded(tmp_path / "none", model, data, budget=size) == {"Q8_0"}
    monkeypatch.setattr(mixed_types, "_HARMLESS", 1e9)
    assert _guarded(tmp_path / "any", model, data, bits=6) > {"Q8_0"}
    audit = json.loads((tmp_path / "any" / "report.json").read_text())["formats"]["mixed"]["audit"]
    assert 5.8 < audit["bits_per_parameter"] <= 6


def _guarded(out: Path, model: Path, data: Path, **settings: Any) -> set[str]:
    run(out, model, data, formats=("mixed",), **settings)
    return {kind for name, kind in types(out / "mixed" / "model.gguf").items() if _is_guarded(name)}


def _is_guarded(name: str) -> bool:
    return "token_embd" in name or name.endswith((".inp_gate.weight", ".proj.weight"))


def test_what_is_too_small_says_how_much_is_lacking(tmp_path, model, data, monkeypatch):
    monkeypatch.setattr(mixed_types, "measure_sensitivity", None)  # which would take long
    with pytest.raises(
        ConfigError, match=r"is [\d,]+ bytes \([\d.]+ bits a weight\) less than the smallest mixed file"
    ):
        run(tmp_path / "out", model, data, bits=3)


def test_tables_that_must_keep_eight_bits_may_leave_no_room(tmp_path, model, data, monkeypatch):
    monkeypatch.setattr(mixed_types, "_HARMLESS", 0)
    with pytest.raises(ConfigError, match="less than the smallest mixed file") as told:
        run(tmp_path / "out", model, data, bits=5)
    assert "quantize.tables" in told.value.fix


def test_a_fit_keeps_the_types_and_the_bytes(made, tmp_path, model, data):
    out, metrics, size = made
    fitted = run(tmp_path / "out", model, data, formats=("mixed",), budget=size, fit="importance")
    one, other = out / "mixed" / "model.gguf", tmp_path / "out" / "mixed" / "model.gguf"
    assert types(one) == types(other)
    assert one.stat().st_size == other.stat().st_size
    assert one.read_bytes() != other.read_bytes()
    assert fitted["mixed/predicted_kl"] == metrics["mixed/predicted_kl"]


def test_a_killed_step_goes_on_with_the_types_that_it_chose(made, tmp_path, model, data, monkeypatch):
    out, _, size = made

    def killed(*_arguments: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("gemma_ops.export.quantizing.measure_files", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", model, data, budget=size)
    (tmp_path / "out" / "mixed" / "model.gguf").unlink()
    monkeypatch.setattr(mixed_types, "measure_sensitivity", killed)
    run(tmp_path / "out", model, data, budget=size)
    assert (tmp_path / "out" / "mixed" / "model.gguf").read_bytes() == (out / "mixed" / "model.gguf").read_bytes()


def test_rows_are_needed_and_count(made, tmp_path, model):
    out, _, size = made
    assert learned_class(out / "mixed") == "paid"
    assert learned_class(out / "q4_0") == "any"
    with pytest.raises(DataError, match="the file mixed need training rows"):
        run(tmp_path / "out", model, None, budget=size)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"formats": ("mixed",)}, "set quantize.budget"),
        ({"budget": "3.2GB"}, "add mixed to quantize.formats"),
        ({"formats": ("mixed",), "budget": "3.2GB", "bits": 4.5}, "keep one"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        QuantizeConfig(**settings)


def test_a_budget_is_read_with_its_unit():
    assert QuantizeConfig(formats=("mixed",), budget="3.2GB").budget == 3_200_000_000
    assert QuantizeConfig(formats=("mixed",), budget="3GiB").budget == 3 * 2**30
