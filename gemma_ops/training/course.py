"""The interface of a training method, for the one skeleton that all of them share, `train_step`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gemma_ops.config import LaunchConfig, MachineConfig, TrainConfig
from gemma_ops.data.row_tokens import Manner
from gemma_ops.training.media_sft import Media


@dataclass
class TrainingRows:
    """Training and validation rows as tables of token ids, and how they became tokens."""

    train: Any
    valid: Any
    cut: int
    """Number of training rows that were longer than `train.max_length`."""
    manner: Manner


@dataclass(frozen=True)
class TrainingSite:
    """The place and the inputs of one training."""

    folder: Path
    """Folder of the checkpoint it starts from."""
    work: Path
    """Folder of its checkpoints, which is deleted at the end."""
    machine: MachineConfig
    launch: LaunchConfig
    device: str
    """Device, `cpu` or `cuda`."""
    tokenizer: Any
    template: str
    """Chat template that the checkpoint publishes."""
    media: Media | None
    """Converter of images and sounds to tensors; None where rows are text."""
    teacher: Path | None
    """Folder of the checkpoint that a distillation learns from."""


def early_stopping(settings: TrainConfig) -> list[Any]:
    """Return the callback that ends a training without a better validation, where the configuration asks for one."""
    import transformers

    if not settings.early_stop:
        return []
    return [transformers.EarlyStoppingCallback(early_stopping_patience=settings.early_stop)]


class Course(Protocol):
    """A training method, or several that differ in their loss alone."""

    answers: bool
    """Whether the model answers validation prompts during the training."""

    def rate_share(self, settings: TrainConfig) -> float:
        """Return the default peak learning rate as a share of the size's own for adapters."""
        ...

    def rows(self, data: Path, settings: TrainConfig, site: TrainingSite) -> TrainingRows:
        """Write the tables of a prepared folder below `site.work`. Raises DataError when nothing can be learned from
        it."""
        ...

    def model(self, settings: TrainConfig, site: TrainingSite) -> Any:
        """Load the model that learns, with all but its tuned parameters frozen."""
        ...

    def trainer(
        self,
        model: Any,
        settings: TrainConfig,
        rows: TrainingRows,
        site: TrainingSite,
        *,
        rate: float,
        follow: Callable[[], Any],
    ) -> Any:
        """Make the trainer; `follow` makes the callback that writes records and samples."""
        ...

    def save(self, model: Any, out: Path, site: TrainingSite, described: dict[str, Any]) -> Path:
        """Write what was learned below `out`, and return its folder. Every process takes part."""
        ...
