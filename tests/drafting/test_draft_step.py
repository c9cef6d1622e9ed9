"""The step `draft`: from a tuned model and its rows to a drafter for every engine, with what it does in llama.cpp."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gemma_ops.config import DraftConfig, MachineConfig, ModelConfig
from gemma_ops.drafting import draft, draft_step
from gemma_ops.errors import ConfigError, DataError, MachineError, ModelError
from gemma_ops.modeling.drafter_files import load_drafter, stock_drafter
from gemma_ops.nano import DRAFTER, WEIGHTS
from gemma_ops.runs import digest
from gemma_ops.verdicts.drafter_record import DrafterRecord
from tests.helpers import tiny_drafters, tiny_models
from tests.helpers.live_server import make_files

MACHINE = MachineConfig(device="cpu", workers=1)
TASKS = (Path(__file__).parents[2] / "eval" / "support_desk",)
SETTINGS = DraftConfig(base="stock", rows=6, steps=2, batch=2, answer_tokens=24, tokens=3, measure_rows=3)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """nano in place of a tuned model, rows of the support desk, nano's GGUF files, and its drafter."""
    data = tmp_path_factory.mktemp("data")
    lines = (TASKS[0] / "train.jsonl").read_text().splitlines()[:8]
    rows = [json.loads(line) | {"privacy": "paid"} for line in lines]
    rows.append({"messages": [{"role": "user", "content": [{"type": "image", "path": "x"}]}], "privacy": "any"})
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quantized = make_files(tmp_path_factory.mktemp("quantized"))
    shutil.rmtree(quantized / "q8_0")
    return {"model": WEIGHTS, "data": data, "quantized": quantized, "stock": DRAFTER}


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("draft")
    return out, draft(out, SETTINGS, MACHINE, tasks=TASKS, **inputs)


def test_it_leaves_a_drafter_for_every_engine_and_what_it_does(made, inputs):
    out, metrics = made
    assert sorted(path.name for path in out.iterdir()) == ["drafter.gguf", "drafter.json", "learned.json", "weights"]
    assert type(load_drafter(out / "weights")).__name__ == "Gemma4AssistantForCausalLM"
    assert json.loads((out / "learned.json").read_text())["privacy"] == "paid"
    record = DrafterRecord.read(out / "drafter.json")
    assert (record.base, record.tokens, record.rows, list(record.files)) == ("drafter", 3, 6, ["q4_0"])
    file = record.files["q4_0"]
    assert file.sha256 == digest.of_file(inputs["quantized"] / "q4_0" / "model.gguf")
    (task,) = file.tasks
    assert (task.task, task.rows, task.equal) == ("support_desk", 3, 3)
    assert task.score == task.score_alone
    assert task.stock.tokens_per_step.value > 1.0
    assert not file.recommended
    assert "3 rows can't show it" in file.reason
    assert metrics["q4_0/equal"] == 1.0
    assert metrics["q4_0/was"] == task.stock.tokens_per_step.value
    assert metrics["parameters"] == 390_368


def test_the_same_step_leaves_the_same_drafter_also_after_a_kill(made, inputs, tmp_path, monkeypatch):
    out, _ = made

    def killed(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(draft_step, "save_drafter", killed)  # all is trained, and nothing written
    with pytest.raises(KeyboardInterrupt):
        draft(tmp_path, SETTINGS, MACHINE, tasks=TASKS, **inputs)
    monkeypatch.undo()
    monkeypatch.setattr(draft_step, "load_model", killed)  # nothing is asked again
    draft(tmp_path, SETTINGS, MACHINE, **inputs)
    for name in ("drafter.gguf", "weights/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_a_drafter_of_another_size_is_refused_before_anything_is_asked(inputs, tmp_path):
    other = tiny_drafters.save_tiny_drafter(tiny_models.save("moe", tmp_path / "moe"), tmp_path / "drafter")
    with pytest.raises(ModelError, match="another size of Gemma 4: width of its target 64, and the target has 128"):
        draft(tmp_path / "out", SETTINGS, MACHINE, **inputs | {"stock": other})
    with pytest.raises(ModelError, match="no drafter of Gemma 4"):
        draft(tmp_path / "out", SETTINGS, MACHINE, **inputs | {"stock": WEIGHTS})


def test_rows_that_ask_nothing_in_text_leave_nothing_to_draft(inputs, tmp_path):
    row = {"messages": [{"role": "user", "content": [{"type": "image", "path": "x"}]}], "privacy": "any"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="asks in text alone"):
        draft(tmp_path / "out", SETTINGS, MACHINE, **inputs | {"data": tmp_path})


def test_a_disk_without_room_is_said_before_anything_is_asked(inputs, tmp_path):
    with pytest.raises(MachineError, match="GB more"):
        draft(tmp_path, SETTINGS.model_copy(update={"rows": 10**12}), MACHINE, **inputs)


@pytest.mark.parametrize(
    ("base", "model", "found"),
    [
        ("none", "nano", None),
        ("stock", "nano", "nano-assistant"),
        ("stock", "google/gemma-4-E2B-it", "google/gemma-4-E2B-it-assistant"),
        ("stock", "google/gemma-4-12B", "google/gemma-4-12B-it-assistant"),
        ("stock", "google/gemma-4-31B-it-qat-q4_0-unquantized", "google/gemma-4-31B-it-assistant"),
        ("stock", "somebody/gemma-4-e2b-tuned", "somebody/gemma-4-e2b-tuned-assistant"),
        ("google/gemma-4-E4B-it-assistant", "nano", "google/gemma-4-E4B-it-assistant"),
    ],
)
def test_stock_is_the_drafter_published_for_the_base(base, model, found):
    stock = stock_drafter(DraftConfig(base=base), ModelConfig(base=model))
    assert (stock.base if stock else None) == found


def test_a_folder_has_no_published_drafter(tmp_path):
    with pytest.raises(ConfigError, match="whose drafter has no name"):
        stock_drafter(DraftConfig(base="stock"), ModelConfig(base=str(tmp_path)))
