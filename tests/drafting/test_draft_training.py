"""Training makes a drafter right more often, also with its clusters, and goes on after a kill with the same bytes."""

from __future__ import annotations

import pytest
import torch

from gemma_ops.drafting import draft_training
from gemma_ops.drafting.draft_training import DraftTraining, draft_loss, train_drafter
from gemma_ops.drafting.drafter_unroll import DraftBatch, TargetTable, drafts_right
from gemma_ops.drafting.recorded_states import RecordedRow, record_states
from gemma_ops.modeling.load import load_model
from tests.helpers import tiny_drafters, tiny_models

SETTINGS = DraftTraining(steps=60, batch=4, rate=1e-2, depth=3, seed=3)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tiny target's table, its recorded rows, and its configuration."""
    folder = tmp_path_factory.mktemp("training")
    model = load_model(tiny_models.save("e2b", folder / "model"), weights="fp32")
    prompts = [[2, 105, 300 + number, 9] for number in range(8)]
    rows = record_states(model, prompts, folder / "states", answer_tokens=8, batch=8)
    table = TargetTable(model.get_input_embeddings().weight.detach(), 30.0)
    return table, rows, model.config.to_dict()


def built(setting):
    return tiny_drafters.build_drafter(setting[2], clusters=32)


def right(setting, drafter, *, clusters):
    table, rows, _ = setting
    batch = DraftBatch.of([rows[number] for number in range(len(rows))], "cpu", torch.float32)
    return float(drafts_right(drafter, table, batch, 3, clusters=clusters).float().mean())


def test_a_trained_drafter_is_right_more_often(setting, tmp_path):
    drafter = built(setting)
    before = [right(setting, drafter, clusters=clusters) for clusters in (False, True)]
    table = setting[0].weight.clone()
    losses = [loss for _, loss in train_drafter(drafter, setting[0], setting[1], SETTINGS, tmp_path)]
    assert len(losses) == SETTINGS.steps
    assert losses[-1] < 0.3 * losses[0]
    after = [right(setting, drafter, clusters=clusters) for clusters in (False, True)]
    assert max(before) < 0.3
    assert min(after) > 1.0
    assert torch.equal(table, setting[0].weight), "the target is frozen"


def test_a_killed_training_ends_with_the_same_bytes(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(draft_training, "SAVE_EVERY", 2)
    settings = DraftTraining(steps=6, batch=4, rate=1e-2, depth=2, seed=3)
    whole, killed, resumed = built(setting), built(setting), built(setting)
    list(train_drafter(whole, setting[0], setting[1], settings, tmp_path / "whole"))
    for step, _ in train_drafter(killed, setting[0], setting[1], settings, tmp_path / "killed"):
        if step == 5:  # one step beyond the last state
            break
    (tmp_path / "killed" / "training.pt.tmp").write_bytes(b"half of it")
    steps = [step for step, _ in train_drafter(resumed, setting[0], setting[1], settings, tmp_path / "killed")]
    assert steps == [5, 6]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_loss_of_a_batch_is_the_mean_over_its_tokens_whatever_is_padded(setting):
    table, rows, _ = setting
    drafter, whole = built(setting), rows[0]
    short = RecordedRow(
        whole.ids[:-4], whole.asked, whole.hidden[:-4],
        {kind: (keys[:, :-4], values[:, :-4]) for kind, (keys, values) in whole.shared.items()},
    )  # fmt: skip

    def loss(*picked):
        return draft_loss(drafter, table, DraftBatch.of(picked, "cpu", torch.float32), 2).item()

    def tokens(row):
        drafted = len(row) - row.asked - 1
        return drafted + 0.8 * (drafted - 1)

    parts = [loss(whole) * tokens(whole), loss(short) * tokens(short)]
    assert loss(whole, short) == pytest.approx(sum(parts) / (tokens(whole) + tokens(short)), rel=1e-4)
