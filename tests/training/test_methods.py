"""Preference methods are exact: however a step is computed it is the same step, and the reference is the base.

Tiny random checkpoints of every shape, float32; tolerances are float32 rounding, wider where a router enlarges it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import TrainerCallback

from gemma_ops.config import DataConfig, MachineConfig, TrainConfig
from gemma_ops.config import methods as known_methods
from gemma_ops.data import chat
from gemma_ops.data.answers import encode_answers
from gemma_ops.data.example import read_rows
from gemma_ops.data.import_rows import Importer
from gemma_ops.data.template import inference_template
from gemma_ops.nano import WEIGHTS
from gemma_ops.runs import digest
from gemma_ops.training import train
from gemma_ops.training.follow import Follow
from gemma_ops.training.methods.preference_course import PreferenceCourse
from gemma_ops.training.methods.whole import WholeSteps
from tests.helpers import answer_tasks
from tests.helpers.checkpoints import close, gradients, tiny
from tests.helpers.kernel_models import EXACT
from tests.helpers.training_sites import site_of

MACHINE = MachineConfig(device="cpu", workers=1)
PLAIN = {"attention": "sdpa", "head": "trl", "lora": "peft", "norms": "eager"}
STEADY = {
    "weights": "fp32",
    "learning_rate": 1e-3,
    "max_steps": 3,
    "batch": 8,
    "micro_batch": 8,
    "max_length": 128,
    "schedule": "constant",
    "warmup_share": 0.0,
    "samples": 0,
}
WAYS = [
    {"packing": False, "micro_batch": 8},
    {"packing": False, "micro_batch": 1},
    {"micro_tokens": 256},
    {"kernels": PLAIN},
    {"checkpointing": "all"},
]
"""Padded, one by one, packed in small passes, without our kernels, recomputed."""


def examples(kind, count=16):
    """Rows of the contract; answers of very different lengths, so that means over passes would show."""
    rows = answer_tasks.rows(kind, count, seed=3)
    for number, row in enumerate(rows):
        for key in ("chosen", "completion"):
            if key in row:
                row[key] += " and so on" * (number % 5)
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of prepared rows by kind."""
    found = {}
    for kind in ("pair", "judged", "conversation"):
        folder = tmp_path_factory.mktemp(kind)
        (folder / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples(kind)))
        settings = DataConfig(path=str(folder / "raw.jsonl"), pii="off")
        rows = [item.example for item in Importer(folder / "raw.jsonl", settings)]
        for name, some in (("train", rows[:12]), ("valid", rows[12:])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        found[kind] = folder
    return found


KIND = {
    "dpo": "pair",
    "orpo": "pair",
    "reward": "pair",
    "kto": "judged",
    "grpo": "conversation",
    "rloo": "conversation",
}


def test_every_method_is_tested_here():
    assert set(KIND) == {*known_methods.PREFERENCE, *known_methods.REINFORCE}


def trainer_for(method, data, work, *, weights=WEIGHTS, prepare=None, **changes):
    """The trainer of a method on a checkpoint, and its model."""
    settings = TrainConfig(method=method, **{**STEADY, **changes})
    course = PreferenceCourse(method)
    site = site_of(weights, work, machine=MACHINE, template=inference_template())
    rows = course.rows(data[KIND[method]], settings, site)
    model = course.model(settings, site)
    if prepare:
        prepare(model)
    return course.trainer(model, settings, rows, site, rate=1e-3, follow=TrainerCallback)


def moved(model):
    """An adapter that has learned something, so that policy and reference differ."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name or name.endswith("score.weight"):
            parameter.data.normal_(std=0.05)


def step(method, data, work, **changes):
    """Loss and gradients of the first step of a training whose adapter has learned something already.

    The reference is the base with its adapter off also where the table would be asked for: the adapter moves later.
    """
    trainer = trainer_for(method, data, work, **changes)
    moved(trainer.model)
    (batch,) = [next(iter(trainer.get_train_dataloader()))]
    loss = trainer.training_step(trainer.model, batch)
    return float(loss), gradients(trainer.model)


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "reward"])
def test_however_a_step_is_computed_it_is_the_same(tmp_path, data, method):
    loss, truth = step(method, data, tmp_path / "a")
    for number, way in enumerate(WAYS):
        other, found = step(method, data, tmp_path / str(number), **way)
        assert other == pytest.approx(loss, rel=1e-5), way
        assert close(found, truth) < 2e-4, way


SHAPES = [("dpo", "e2b"), ("kto", "e2b"), ("dpo", "moe"), ("kto", "dense31"), ("dpo", "unified")]


@pytest.mark.parametrize("method, kind", SHAPES)
def test_on_every_shape(tmp_path, data, method, kind):
    """Shared keys and values with layers recomputed, experts, keys reused as values."""
    common = {"weights": tiny(kind)}
    loss, truth = step(method, data, tmp_path / "a", kernels=PLAIN, packing=False, micro_batch=1, **common)
    other, found = step(method, data, tmp_path / "b", checkpointing="all", **common)
    assert other == pytest.approx(loss, rel=1e-4)
    assert close(found, truth) < EXACT.get(kind, 1e-4) * 10


def test_a_mean_of_means_would_not_be_the_large_batch(tmp_path, data, monkeypatch):
    """Why a pass counts by its rows: with equal weights, passes of unlike size make another step."""
    passes = {"micro_tokens": 400}
    _, truth = step("dpo", data, tmp_path / "a")
    _, same = step("dpo", data, tmp_path / "b", **passes)
    prepared = WholeSteps._prepared

    def alike(*given):
        found = prepared(*given)
        assert len({count for _, count in found}) > 1
        return [(one, STEADY["batch"] / len(found)) for one, _ in found]

    monkeypatch.setattr(WholeSteps, "_prepared", alike)
    _, other = step("dpo", data, tmp_path / "c", **passes)
    assert close(same, truth) < 2e-4
    assert close(other, truth) > 1e-2


def answer_logps(model, row, side):
    """The log-probability of an answer from whole logits, for a row by itself."""
    ids = row["prompt_ids"] + row[f"{side}_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
    labels = torch.tensor(ids[1:])
    each = logits.gather(-1, labels[:, None])[:, 0][len(row["prompt_ids"]) - 1 :]
    return float(each[torch.tensor(row[f"{side}_loss"])].sum())


def test_the_reference_is_the_base_with_the_adapter_off(tmp_path, data):
    """Of a policy that has moved on: its own values are others, and the answers' tokens alone count."""
    from gemma_ops.modeling.load import load_model

    base = load_model(WEIGHTS, weights="fp32")
    trainer = trainer_for("dpo", data, tmp_path)
    moved(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    (inputs, count), *_ = trainer._prepared(trainer.model, batch)
    assert count == STEADY["batch"]
    rows = list(trainer.train_dataset)
    for side in ("chosen", "rejected"):
        wanted = sorted(answer_logps(base, row, side) for row in rows)
        policy = sorted(answer_logps(trainer.model, row, side) for row in rows)
        found = inputs[f"ref_{side}_logps"].tolist()
        assert all(min(abs(value - other) for other in wanted) < 1e-3 for value in found)
        assert not any(min(abs(value - other) for other in policy) < 1e-3 for value in found)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_reference_made_beforehand_is_the_same(tmp_path, data, method, monkeypatch):
    """With an adapter that starts at the base both ways are open: they make the same training."""
    asked = trainer_for(method, data, tmp_path / "a")
    monkeypatch.setattr(f"gemma_ops.training.methods.{method}.starts_at_base", lambda model: False)
    tabled = trainer_for(method, data, tmp_path / "b")
    assert any(name.startswith("ref_") for name in tabled.train_dataset.column_names)
    assert not any(name.startswith("ref_") for name in asked.train_dataset.column_names)
    for trainer in (asked, tabled):
        moved(trainer.model)
    found = [
        float(trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader()))))
        for trainer in (asked, tabled)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert close(gradients(asked.model), gradients(tabled.model)) < 1e-4


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_start_that_is_not_the_base_is_its_own_reference(tmp_path, data, method):
    """PiSSA moves weights of the base into the adapter: switched off, something else than the start would be left."""
    trainer = trainer_for(method, data, tmp_path, lora={"init": "pissa", "rank": 4})
    assert any(name.startswith("ref_") for name in trainer.train_dataset.column_names)
    loss = float(trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader()))))
    assert loss == pytest.approx({"dpo": 0.6931472, "kto": 0.5}[method], rel=1e-4)  # the policy is the reference


def test_no_second_adapter_and_no_rounding(tmp_path, data):
    """TRL would add an adapter `ref` beside the first, and round what learns for a 4-bit base."""
    trainer = trainer_for("dpo", data, tmp_path, weights=WEIGHTS, lora={"rank": 4})
    assert list(trainer.model.peft_config) == ["default"]
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "grpo"])
def test_logits_are_never_whole(tmp_path, data, method, monkeypatch):
    """Nothing passes through the model's own head while answers are scored."""
    trainer = trainer_for(method, data, tmp_path, **({"reinforce": REINFORCE} if method == "grpo" else {}))
    base = trainer.model.get_base_model()

    def refuse(*_):
        raise AssertionError("the head was applied")

    handle = base.lm_head.register_forward_hook(refuse)
    if method == "grpo":
        ids = torch.arange(110, 130)[None].repeat(2, 1)
        labels = ids.clone()
        base(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
    else:
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    handle.remove()


@pytest.mark.parametrize("loss", ["ipo", "robust", "hinge", "sigmoid_norm"])
def test_relatives_of_dpo_keep_the_step(tmp_path, data, loss):
    smoothing = {"label_smoothing": 0.1} if loss in ("robust", "exo_pair") else {}
    preference = {"preference": {"loss": loss, **smoothing}}
    one, truth = step("dpo", data, tmp_path / "a", **preference)
    other, found = step("dpo", data, tmp_path / "b", packing=False, micro_batch=2, **preference)
    assert other == pytest.approx(one, rel=1e-4)
    assert close(found, truth) < 5e-4


REINFORCE = {"rewards": ["exact_match"], "generations": 4, "max_new_tokens": 8}


def trained(out, data, base, method, **changes):
    out.mkdir(exist_ok=True)
    settings = TrainConfig(method=method, **{**STEADY, **changes})
    metrics = train(out, settings, MACHINE, base=base, data=data[KIND[method]])
    records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
    return metrics, records


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fetched")
    (folder / "weights").symlink_to(WEIGHTS)
    (folder / "model.json").write_text(json.dumps({"id": "nano", "revision": None, "size": None, "files": {}}))
    return folder


def test_orpo_falls_and_a_reward_model_tells_new_pairs_apart(tmp_path, base):
    """On pairs nobody trained on; the head is kept beside the adapter and scores alike when it is loaded again."""
    from gemma_ops.modeling import reward_head
    from gemma_ops.prepare.prepare_step import prepare

    (tmp_path / "a").mkdir()
    rows, _ = answer_tasks.write(tmp_path / "a", "pair", count=128)
    out = tmp_path / "data"
    out.mkdir()
    prepare(out, DataConfig(path=str(rows), valid_share=0.2, near_duplicates=None), MACHINE, source=rows, model=WEIGHTS)
    data = {"pair": out}
    _, records = trained(tmp_path / "orpo", data, base, "orpo", max_steps=10, learning_rate=2e-3)
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.5 * losses[0]
    metrics, records = trained(
        tmp_path / "reward", data, base, "reward", max_steps=12, eval_every=1, learning_rate=5e-4
    )
    seen = [record["eval_accuracy"] for record in records if "eval_accuracy" in record]
    assert metrics["eval_accuracy"] == seen[-1] >= 0.9
    assert seen[-1] > seen[0] + 0.1
    model = reward_head.load_reward(WEIGHTS, tmp_path / "reward" / "adapter", weights="fp32")
    tokenizer = chat.load_tokenizer(WEIGHTS)
    held = [encode_answers(tokenizer, row) for row in read_rows(out / "valid.jsonl")]
    chosen, rejected = (
        reward_head.scores(model, [row.prompt + row.answers[side].ids for row in held])
        for side in ("chosen", "rejected")
    )
    right = sum(first > second for first, second in zip(chosen, rejected, strict=True))
    assert right / len(held) == pytest.approx(seen[-1])


def test_rewards_rise_with_one_left_out(tmp_path, data, base):
    """A reward that nano earns now and then is earned more often; answers are drawn by the policy itself."""
    reinforce = {**REINFORCE, "rewards": [{"metric": "length", "options": {"max": 1}}], "generations": 8}
    _, records = trained(
        tmp_path / "out",
        data,
        base,
        "rloo",
        reinforce=reinforce,
        max_steps=8,
        batch=4,
        micro_batch=32,
        learning_rate=3e-3,
    )
    rewards = [record["reward"] for record in records if "reward" in record]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.1, rewards


_CHILD = """
import sys
from pathlib import Path
from gemma_ops.config import MachineConfig, TrainConfig
from gemma_ops.training import train
from gemma_ops.training.follow import Follow
train(Path(sys.argv[1]), TrainConfig(**eval(sys.argv[2])), MachineConfig(device="cpu", workers=1),
      base=Path(sys.argv[3]), data=Path(sys.argv[4]))
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_ends_with_the_same_bytes(tmp_path, data, base):
    """Killed while it trains and run again, in its second epoch, adapter, record and samples are those of an unbroken
    run."""
    settings = {**STEADY, "method": "dpo", "max_steps": 10, "save_every": 2, "eval_every": 5, "samples": 1, "batch": 4}
    settings["micro_batch"] = 4
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    train(whole, TrainConfig(**settings), MACHINE, base=base, data=data["pair"])
    command = [sys.executable, "-c", _CHILD, str(broken), repr(settings), str(base), str(data["pair"])]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    for _ in range(2400):
        if (broken / "checkpoints" / "checkpoint-4" / "complete").exists() or child.poll() is not None:
            break
        time.sleep(0.02)
    assert child.poll() is None, "the training ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (broken / "adapter").exists()
    train(broken, TrainConfig(**settings), MACHINE, base=base, data=data["pair"])
    assert digest.of_path(broken) == digest.of_path(whole)
    files = {path.relative_to(whole).as_posix() for path in digest.files_in(whole)}
    kept = {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/learned.json",
        "learned.json",
        "adapter/prompting.json",
        "record.jsonl",
        "samples.jsonl",
    }
    assert files == kept


@pytest.mark.parametrize("method", ["kto", "grpo", "reward"])
def test_a_run_that_goes_on_ends_with_the_same_bytes(tmp_path, data, base, method, monkeypatch):
    """Stopped after its second epoch began: order of rows, draws and optimizer go on where they were."""
    reinforce = {"reinforce": {**REINFORCE, "rewards": [{"metric": "length", "options": {"max": 1}}]}}
    more = reinforce if method == "grpo" else {"eval_every": 3}
    settings = TrainConfig(
        **{**STEADY, "method": method, "max_steps": 6, "save_every": 4, "batch": 4, "micro_batch": 4, **more}
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    train(whole, settings, MACHINE, base=base, data=data[KIND[method]])
    save = Follow.on_save

    def stop(self, *given, **more):
        save(self, *given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Follow, "on_save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(broken, settings, MACHINE, base=base, data=data[KIND[method]])
    assert (broken / "checkpoints" / "checkpoint-4" / "complete").exists()
    monkeypatch.setattr(Follow, "on_save", save)
    train(broken, settings, MACHINE, base=base, data=data[KIND[method]])
    assert digest.of_path(broken) == digest.of_path(whole)
