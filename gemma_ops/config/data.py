"""The section of the base model, and that of the rows it is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gemma_ops.config.section import LOCATION, ConfigSection, Privacy, Share


class ModelConfig(ConfigSection):
    """Which Gemma 4 to start from."""

    base: str = "nano"
    """`nano` (shipped, CPU size), a local folder, or a Hub id such as `google/gemma-4-E2B-it`."""
    revision: str | None = None
    """Hub revision (a commit); resolved to a commit and recorded when not given."""
    privacy: Privacy | None = None
    """Strictest class of the rows that this model learned from, where no record of ours says it; a record may only be
    stricter."""


class DataConfig(ConfigSection):
    """Where the training rows come from and what is done to them."""

    path: Annotated[str | None, LOCATION] = None
    """A file or folder: jsonl, json, csv, tsv, parquet, or a `datasets` folder saved with `save_to_disk`."""
    hub: str | None = None
    """A Hub dataset id, instead of `path`."""
    split: str = "train"
    """Which split of a Hub data set or `datasets` folder."""
    format: Literal[
        "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "gemini", "columns", "preference",
        "openai_preference", "judged", "text",
    ] = "auto"  # fmt: skip
    """Layout of a row; `auto` decides by the keys of the first rows. `preference`, `openai_preference` and `judged`
    hold answers that were compared or judged, `text` is for `train.method: pretrain`."""
    encoding: str = "auto"
    """Encoding of text files; `auto` takes UTF-8, and UTF-16 and UTF-32 by their first bytes; any other is named as
    Python does, such as `cp1252`."""
    prompt: str | None = None
    """For `columns`: the user turn, with `{column}` placeholders."""
    completion: str | None = None
    """For `columns`: the assistant turn, with `{column}` placeholders."""
    system: str | None = None
    """A system turn put before every row that has none."""
    group_by: str | None = None
    """Column (or metadata key) whose equal values stay on one side of the split; by default each row is its own
    group."""
    privacy: Privacy = "local_only"
    """Privacy class of rows that don't carry one of their own; a row may only be stricter."""
    valid_share: Share = 0.05
    """Share of groups held out for validation, chosen by hash: stable when rows are appended."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many rows."""
    max_bad_share: Share = 0.0
    """Fail when a larger share of rows is unusable; the rows themselves go to `rejected.jsonl`."""
    max_line_mb: Annotated[float, Field(gt=0)] = 16.0
    """A longer line is rejected without being read into memory (MB)."""
    max_media_mb: Annotated[float, Field(gt=0)] = 20.0
    """A larger image or audio file makes its row unusable (MB)."""
    exact_duplicates: Literal["drop", "keep"] = "drop"
    """What to do with rows that train the very same as an earlier one."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Drop rows whose 5-gram Jaccard similarity to an earlier one reaches this; null keeps them."""
    overlap: Literal["refuse", "drop", "report"] = "refuse"
    """What to do with rows that also stand in an evaluation task."""
    pii: Literal["off", "report", "mask", "refuse"] = "report"
    """What to do about personal data found by checksummed patterns."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.path and self.hub:
            raise ValueError("give data.path or data.hub, not both")
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("data.prompt and data.completion go together")
        return self
