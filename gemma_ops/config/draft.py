"""The section of drafters: which one is tuned for speculative decoding, on what, and how it is measured."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gemma_ops.config.section import ConfigSection


class DraftConfig(ConfigSection):
    """A drafter that says the tuned model's next tokens ahead of it."""

    base: str = "none"
    """The drafter that is tuned: `stock`, the one published for `model.base`; a folder or a Hub id such as
    `google/gemma-4-E2B-it-assistant`; `none` makes no drafter."""
    revision: str | None = None
    """Hub revision (a commit) of that drafter."""
    tokens: Annotated[int, Field(ge=1, le=16)] = 4
    """Tokens that are drafted before the model checks them, in training and when served."""
    rows: Annotated[int, Field(ge=1)] = 2000
    """Training prompts that the tuned model answers for the drafter to learn from."""
    answer_tokens: Annotated[int, Field(ge=2)] = 256
    """Longest answer, in tokens, that it learns from."""
    steps: Annotated[int, Field(ge=1)] = 400
    """Optimizer steps of the training."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Answers of a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    measure_rows: Annotated[int, Field(ge=1)] = 200
    """Questions of each task that are answered with and without the drafter."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Loss of a task's primary metric beyond which answers with the drafter count as worse."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of the gate and of the intervals."""
    seed: int = 7
    """Decides which rows are answered, and their order."""
