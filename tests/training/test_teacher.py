"""Methods of the supervised trainer with inputs of their own: a teacher to learn from, and raw texts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from gemma_ops.config import MachineConfig, TrainConfig
from gemma_ops.data import chat
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.modeling import adapters
from gemma_ops.modeling.load import load_model
from gemma_ops.nano import WEIGHTS, tickets
from gemma_ops.training import larger_model, teacher, train
from tests.helpers import tiny_models
from tests.helpers.checkpoints import tiny

MACHINE = MachineConfig(device="cpu", workers=1)
STEADY = {
    "weights": "fp32",
    "learning_rate": 5e-3,
    "max_steps": 12,
    "batch": 8,
    "micro_batch": 8,
    "max_length": 128,
    "schedule": "constant",
    "warmup_share": 0.0,
    "samples": 0,
}
DISTILL = {"method": "distill", "distill": {"teacher": "./larger", "mix": 1.0}}


def fetched(folder, weights):
    folder.mkdir()
    (folder / "weights").symlink_to(weights)
    (folder / "model.json").write_text(json.dumps({"id": "tiny", "revision": None, "size": None, "files": {}}))
    return folder


def prepared(folder, rows):
    folder.mkdir()
    rows = [{"id": f"{n:032x}", **row, "source": "t:1", "privacy": "any", "group": "g"} for n, row in enumerate(rows)]
    for name, some in (("train", rows[8:]), ("valid", rows[:8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def divergence(student, other, rows):
    """Mean KL divergence of a student from its teacher on the answers of rows, from whole logits."""
    tokenizer, total, count = chat.load_tokenizer(WEIGHTS), 0.0, 0
    for row in rows:
        whole = chat.encode_chat(tokenizer, row["messages"])
        keep = torch.tensor(whole.loss[1:])
        with torch.no_grad():
            p, q = (
                model(input_ids=torch.tensor([whole.ids]), use_cache=False).logits[0, :-1][keep].log_softmax(-1)
                for model in (other, student)
            )
        total += float((p.exp() * (p - q)).sum())
        count += int(keep.sum())
    return total / count


@pytest.mark.parametrize("kind", ["e2b", "moe"])
def test_a_student_comes_closer_to_its_teacher(tmp_path, kind):
    """On rows it did not learn from, of another shape than its own; what it is measured by is no code of the
    training."""
    base, larger = fetched(tmp_path / "base", tiny(kind)), fetched(tmp_path / "larger", tiny("dense31"))
    rows = tickets.training_rows(40, 1)
    out = tmp_path / "out"
    out.mkdir()
    train(
        out,
        TrainConfig(**{**STEADY, **DISTILL}),
        MACHINE,
        base=base,
        data=prepared(tmp_path / "d", rows),
        teacher=larger,
    )
    other, start = (load_model(tiny(name), weights="fp32") for name in ("dense31", kind))
    before = divergence(start, other, rows[:8])
    after = divergence(adapters.load_adapter(start, out / "adapter"), other, rows[:8])
    assert after < 0.7 * before, (before, after)


def test_packed_padded_and_accumulated_distillation_is_the_same(tmp_path):
    base, larger = fetched(tmp_path / "base", tiny("e2b")), fetched(tmp_path / "larger", tiny("dense31"))
    data = prepared(tmp_path / "d", tickets.training_rows(24, 1))
    found = []
    for number, way in enumerate(({}, {"packing": False, "micro_batch": 2}, {"kernels": {"attention": "sdpa"}})):
        out = tmp_path / str(number)
        out.mkdir()
        settings = TrainConfig(**{**STEADY, **DISTILL, "max_steps": 2, **way})
        train(out, settings, MACHINE, base=base, data=data, teacher=larger)
        records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
        found.append([value for record in records for key, value in record.items() if key in ("loss", "grad_norm")])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] == pytest.approx(found[0], rel=1e-3)


def test_another_vocabulary_is_refused(tmp_path):
    """Whether tokens are numbered otherwise, or there are more of them."""
    shorter = fetched(tmp_path / "shorter", tiny_models.save("e2b", tmp_path / "short", vocab_size=2000))
    with pytest.raises(ModelError, match=r"another vocabulary .* 2,000 entries instead of"):
        teacher.check_teacher(shorter, tiny("e2b"))
    other = shutil.copytree(tiny("e2b"), tmp_path / "swapped")
    body = json.loads((other / "tokenizer.json").read_text())
    vocabulary = body["model"]["vocab"]
    first, second = (token for token, number in vocabulary.items() if number in (300, 301))
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(ModelError, match="2 tokens are numbered differently"):
        teacher.check_teacher(fetched(tmp_path / "other", other), tiny("e2b"))
    assert teacher.check_teacher(fetched(tmp_path / "larger", tiny("dense31")), tiny("e2b"))


def test_a_distillation_without_a_teacher_is_refused(tmp_path):
    base = fetched(tmp_path / "base", WEIGHTS)
    data = prepared(tmp_path / "d", tickets.training_rows(16, 1))
    with pytest.raises(ConfigError, match="has no teacher"):
        train(tmp_path, TrainConfig(**{**STEADY, **DISTILL}), MACHINE, base=base, data=data)
    assert larger_model(TrainConfig(**DISTILL)).base == "./larger"
    assert larger_model(TrainConfig()) is None


def texts(count):
    return [{"messages": [], "text": row["messages"][0]["content"]} for row in tickets.training_rows(count, 1)]


def test_texts_are_learned_and_cut_into_rows(tmp_path):
    """Continued pre-training: documents longer than a row, packed or not, the same steps and a falling loss."""
    base, data = fetched(tmp_path / "base", WEIGHTS), prepared(tmp_path / "d", texts(24))
    found = []
    for name, way in (("packed", {}), ("padded", {"packing": False})):
        out = tmp_path / name
        out.mkdir()
        settings = TrainConfig(method="pretrain", **{**STEADY, "max_steps": 6, "max_length": 32, "samples": 2, **way})
        metrics = train(out, settings, MACHINE, base=base, data=data)
        assert metrics["rows"] > 16
        assert metrics["cut_rows"] == 0
        records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
        found.append([record["loss"] for record in records if "loss" in record])
        assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[0][-1] < 0.8 * found[0][0]


def test_the_loss_of_a_text_is_the_models_own_on_every_token(tmp_path):
    base, data = fetched(tmp_path / "base", WEIGHTS), prepared(tmp_path / "d", texts(16))
    out = tmp_path / "out"
    out.mkdir()
    settings = TrainConfig(method="pretrain", **{**STEADY, "max_steps": 1, "batch": 8})
    train(out, settings, MACHINE, base=base, data=data)
    first = json.loads((out / "record.jsonl").read_text().splitlines()[0])["loss"]
    model, tokenizer = load_model(WEIGHTS, weights="fp32"), chat.load_tokenizer(WEIGHTS)
    total, count = 0.0, 0
    for line in (data / "train.jsonl").read_text().splitlines():
        ids = [2, *tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids, 1]
        assert (tokenizer.token_to_id("<bos>"), tokenizer.token_to_id("<eos>")) == (2, 1)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
        total -= float(logits.gather(-1, torch.tensor(ids[1:])[:, None]).sum())
        count += len(ids) - 1
    assert first == pytest.approx(total / count, rel=1e-4)
