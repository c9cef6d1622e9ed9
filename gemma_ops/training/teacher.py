"""The teacher of a distillation: a larger Gemma 4 whose probabilities the student learns.

Both distributions are compared token by token, so both models must number the same tokens alike. A teacher of another
vocabulary would teach nonsense without an error, and is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.config import TrainConfig
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.load import load_model, load_tokenizer


def check_teacher(teacher: Path | None, student: Path) -> Path:
    """Return the checkpoint folder of the teacher's artifact, which must read and write the tokens of the checkpoint
    `student`.

    Raises ConfigError where there is no teacher, ModelError where its vocabulary is another one.
    """
    if teacher is None:
        raise ConfigError(
            "train.method distill has no teacher: the recipe gives its step train none",
            "use the recipe lora, or give the step `teacher=` as it does",
        )
    folder = checkpoint(teacher)
    sizes = [_vocabulary(path) for path in (student, folder)]
    ours, theirs = (load_tokenizer(path).get_vocab(with_added_tokens=True) for path in (student, folder))
    differ = sum(theirs.get(token) != number for token, number in ours.items()) + len(theirs.keys() - ours.keys())
    if sizes[0] != sizes[1] or differ:
        what = (
            f"{differ:,} tokens are numbered differently" if differ else f"{sizes[1]:,} entries instead of {sizes[0]:,}"
        )
        raise ModelError(
            f"the teacher has another vocabulary than the model that learns from it: {what}",
            "distill from a model of the same family: all sizes of Gemma 4 share one tokenizer",
        )
    return folder


def load_teacher(folder: Path, settings: TrainConfig, device: str) -> Any:
    """Load the teacher, frozen, on the kernels that the student trains on."""
    from gemma_ops import kernels

    model = load_model(folder, weights=settings.weights, device=device)
    model.requires_grad_(requires_grad=False)
    kernels.install_kernels(model, settings.kernels, recompute="none")
    return model.eval()


def _vocabulary(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("text_config", config)["vocab_size"])
