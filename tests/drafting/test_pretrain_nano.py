"""nano's drafter can be trained again from its seed, to the same bytes."""

from __future__ import annotations

from gemma_ops.drafting.pretrain_nano import pretrain_drafter
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.nano import DRAFTER, WEIGHTS


def test_two_trainings_end_with_the_same_bytes(tmp_path):
    losses = [pretrain_drafter(tmp_path / name, steps=3, count=16, rows=8) for name in ("one", "two")]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_shipped_checkpoints_have_names():
    assert local_base("nano") == WEIGHTS
    assert local_base("nano-assistant") == DRAFTER
    assert (DRAFTER / "config.json").is_file()
