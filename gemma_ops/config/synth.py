"""The section of synthesis: rows written by a teacher from documents or seeds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.config.section import LOCATION, ConfigSection, Privacy

Count = Annotated[int, Field(ge=0)]


class CountConfig(ConfigSection):
    """Rows to ask for, method by method; filters leave fewer."""

    document_qa: Count = 0
    """Questions a document answers, each with the quotation that proves the answer."""
    self_instruct: Count = 0
    """New instructions in the manner of the seeds."""
    evolve: Count = 0
    """Harder versions of rows that passed the checks: deeper, more constrained, more concrete."""
    tool_calls: Count = 0
    """Dialogues that call the declared tools."""
    preferences: Count = 0
    """Pairs of a good and a flawed answer, with the reason; they go to a file of their own."""


class SynthConfig(ConfigSection):
    """What to write rows from, and who writes them."""

    documents: Annotated[str | None, LOCATION] = None
    """A file or folder: md, txt, html, jsonl (pdf with the extra)."""
    seeds: Annotated[str | None, LOCATION] = None
    """Rows to learn the manner from, as `messages`: a jsonl file."""
    tools: Annotated[str | None, LOCATION] = None
    """Function declarations as JSON, in OpenAI's form."""
    teacher: str = "base"
    """Who writes: `base`, another Gemma 4 (a folder, with a `/` in it, or a Hub id), or a service such as
    `gemini:MODEL@low`."""
    count: CountConfig = CountConfig()
    per_request: Annotated[int, Field(ge=1, le=20)] = 4
    """Rows asked for at once: more is cheaper, and the teacher repeats itself less."""
    section_words: Annotated[int, Field(ge=50)] = 500
    """Longest part of a document shown at once; sections end at headings and paragraphs."""
    max_new_tokens: Annotated[int, Field(ge=64)] = 2048
    """Longest reply of the teacher, in tokens; the thoughts of a service come on top."""
    privacy: Privacy = "local_only"
    """Privacy class of documents and seeds that don't state one; they may only state a stricter one."""
    hidden: Literal["refuse", "skip"] = "refuse"
    """What to do with documents that the teacher may not see."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Drop rows whose 5-gram Jaccard similarity to an earlier one reaches this; null keeps them."""
    pii: Literal["off", "report", "drop"] = "drop"
    """What to do with rows that hold personal data found by checksummed patterns."""
    judge: str | None = None
    """Who grades the rows, as in `teacher`; another family is better, null grades none."""
    judge_minimum: Annotated[int, Field(ge=1, le=5)] = 4
    """Rows that the judge gives less, of 5, are dropped."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Decides which sections and seeds are asked first."""
