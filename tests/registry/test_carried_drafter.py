"""A version carries the drafter of its run, and its manifest and card say what that does."""

from __future__ import annotations

import json
import struct

import pytest

from gemma_ops.config import RegisterConfig
from gemma_ops.errors import ModelError
from gemma_ops.registry import manifest, staging
from gemma_ops.registry.card_drafter import drafter_section
from gemma_ops.registry.fetching import only_format
from gemma_ops.runs import digest
from gemma_ops.verdicts.drafter_record import DrafterRecord
from tests.helpers import registry_runs as runs
from tests.helpers.drafter_records import drafter_record


@pytest.fixture
def draft(tmp_path):
    """The folder of the step `draft`, finished."""
    folder = tmp_path / "draft"
    (folder / "weights").mkdir(parents=True)
    (folder / "drafter.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"x" * 50)
    (folder / "weights" / "model.safetensors").write_bytes(runs.tensors(b"w" * 40))
    (folder / "weights" / "config.json").write_text("{}")
    (folder / "drafter.json").write_text(drafter_record({"q8_0": ("s8", True), "q4_0": ("s4", False)}).text())
    files = {
        file.relative_to(folder).as_posix(): {"sha256": digest.of_file(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    listing = digest.of_listing({name: file["sha256"] for name, file in files.items()})
    body = {"step": "draft", "digest": listing, "settings": {}, "inputs": {}, "metrics": {}, "files": files}
    (folder / "artifact.json").write_text(json.dumps(body))
    return folder


@pytest.fixture
def subject(draft, tmp_path):
    artifacts = runs.make(runs.config(tmp_path, mlflow=None))
    names = {"adapter": "train", "quantized": "quantize", "evaluation": "evaluate", "data": "prepare"}
    given = {key: artifacts[step].path for key, step in names.items() if step in artifacts} | {"drafter": draft}
    settings = RegisterConfig(name="m", artifacts=("q8_0", "q4_0"))
    without = {key: path for key, path in given.items() if key != "data"}
    files = staging.select_files(settings, model=artifacts["fetch"].path, **without)
    return manifest.build_manifest(settings, files, model=artifacts["fetch"].path, **given)["subject"]


def test_a_version_carries_the_drafter_and_says_what_it_does(subject):
    carried = {name for name in subject["files"] if name.startswith("drafter/")}
    assert carried == {
        "drafter/drafter.gguf", "drafter/drafter.json", "drafter/weights/model.safetensors",
        "drafter/weights/config.json",
    }  # fmt: skip
    assert DrafterRecord.model_validate(subject["drafter"]).files["q8_0"].recommended
    assert all(map(only_format("q8_0"), carried))


def test_the_card_says_whether_to_use_it(subject):
    heading, text = drafter_section(subject)
    assert heading == "## Drafter"
    assert "| q8_0 | routing (200 questions) | 1.40 | 3.60 [3.50, 3.70] |" in text
    assert "| 199 of 200 |" in text
    assert "- q8_0: use it. routing: 1.50×" in text
    assert "- q4_0: leave it off. routing: slower" in text
    assert "--model-draft drafter/drafter.gguf --spec-type draft-mtp --spec-draft-n-max 3" in text
    assert drafter_section({key: value for key, value in subject.items() if key != "drafter"}) == []


def test_a_drafter_without_its_record_is_refused(draft):
    (draft / "drafter.json").unlink()
    with pytest.raises(ModelError, match=r"has no drafter\.json"):
        staging.select_files(RegisterConfig(name="m", artifacts=("adapter",)), adapter=_adapter(draft), drafter=draft)


def _adapter(draft):
    (draft.parent / "train" / "adapter").mkdir(parents=True)
    (draft.parent / "train" / "adapter" / "adapter_model.safetensors").write_bytes(runs.tensors(b"a"))
    return draft.parent / "train"
