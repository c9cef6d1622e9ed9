"""The step `quantize`: files, audit, parity, fidelity, and what stops it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import DataError, GateError, ModelError
from gemma_ops.export import quantize
from gemma_ops.runs import digest
from tests.helpers import tiny_models

MACHINE = MachineConfig(device="cpu", workers=1)
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Order {number}: where is my parcel?"},
            {"role": "assistant", "content": f'{{"category": "shipping", "order": {number}}}'},
        ]
    }
    for number in range(100, 106)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_models.save("e2b", tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def run(out: Path, model: Path, data: Path | None = None, **settings) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    return quantize(out, QuantizeConfig(**{"fidelity_rows": 4} | settings), MACHINE, model=model, data=data)


def test_files_report_and_metrics(tmp_path, base, data):
    metrics = run(tmp_path / "q", base, data)
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == [
        "bf16",
        "learned.json",
        "q4_0",
        "q8_0",
        "report.json",
    ]
    report = json.loads((tmp_path / "q" / "report.json").read_text())
    assert report["parity"]["transformers"] == "fp32"
    assert metrics["parity/kl"] < 0.003
    assert metrics["parity/top1"] > 0.95
    # More rounding, more divergence; each estimate lies within its interval.
    assert 0 < metrics["q8_0/kl"] < 0.02 < metrics["q4_0/kl"] < 1
    for form in ("q8_0", "q4_0"):
        assert metrics[f"{form}/kl_low"] <= metrics[f"{form}/kl"] <= metrics[f"{form}/kl_high"]
        assert report["formats"][form]["fidelity"]["conversations"] == 4
        assert metrics[f"{form}/quantized_share"] > 0.95
        file = tmp_path / "q" / form / "model.gguf"
        assert metrics[f"{form}/mb"] == file.stat().st_size / 1e6
    assert metrics["q4_0/mb"] < metrics["q8_0/mb"] < metrics["bf16/mb"]
    audit = report["formats"]["q4_0"]["audit"]
    assert set(audit["by_kind"]["token_embd.weight"]) == {"Q8_0"}
    assert sum(audit["bytes"].values()) < audit["file_bytes"]


def test_goes_on_after_a_kill_with_the_same_bytes(tmp_path, base, data):
    run(tmp_path / "whole", base, data, formats=("q8_0",))
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole" / "bf16", killed / "bf16")
    (killed / "q8_0").mkdir()
    (killed / "q8_0" / "model.gguf.tmp").write_bytes(b"GGUF, half of it")
    kept = (killed / "bf16" / "model.gguf").stat().st_mtime_ns
    run(killed, base, data, formats=("q8_0",))
    assert digest.of_path(killed) == digest.of_path(tmp_path / "whole")
    assert (killed / "bf16" / "model.gguf").stat().st_mtime_ns == kept


def test_without_data_fixed_prompts_are_continued(tmp_path, base):
    metrics = run(tmp_path / "q", base, formats=("bf16",))
    assert "bf16/mb" in metrics
    assert not any(name.startswith(("q8_0", "q4_0")) for name in metrics)


def test_a_conversion_that_is_wrong_does_not_pass(tmp_path, base, data):
    """The bf16 file of another model in its place: right names, right types, other values."""
    other = tiny_models.save("e2b", tmp_path / "other", seed=1)
    run(tmp_path / "q", other, data, formats=("bf16",))
    with pytest.raises(GateError, match="disagree on the same tokens before any quantization"):
        run(tmp_path / "q", base, data, formats=("bf16",))


def test_a_forgotten_rope_factor_does_not_pass(tmp_path, data, monkeypatch):
    """The least visible mistake of a conversion: proportional RoPE in the global layers only."""
    from gemma_ops.export import gguf_metadata

    base = tiny_models.save("dense31", tmp_path / "base")
    original = gguf_metadata.rope_factors
    monkeypatch.setattr(gguf_metadata, "rope_factors", lambda source: original(source) * 0 + 1)
    with pytest.raises(GateError, match="disagree"):
        run(tmp_path / "q", base, data, formats=("bf16",))


def test_another_tokenizer_does_not_pass(tmp_path, base, data):
    """Merges in another order: the same vocabulary, other tokens."""
    copy = shutil.copytree(base, tmp_path / "base")
    run(tmp_path / "q", copy, data, formats=("bf16",))
    body = json.loads((copy / "tokenizer.json").read_text())
    body["model"]["merges"].reverse()
    (copy / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(GateError, match="tokenizes"):
        run(tmp_path / "q", copy, data, formats=("bf16",))


def test_broken_inputs(tmp_path, base, data):
    with pytest.raises(ModelError):
        run(tmp_path / "q", tmp_path)
    broken = tmp_path / "data"
    broken.mkdir()
    (broken / "valid.jsonl").write_text('{"messages": [}\n')
    with pytest.raises(DataError, match=r"valid\.jsonl:1"):
        run(tmp_path / "q", base, broken, formats=("bf16",))


def test_the_room_imports_nothing_heavy():
    code = (
        "import sys, gemma_ops.export; print([m for m in ('torch', 'numpy', 'gguf', 'transformers') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
