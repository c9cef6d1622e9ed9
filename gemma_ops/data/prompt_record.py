"""The mode and chat template that a model was trained with, recorded next to its weights so that evaluation and serving
ask the same way.

`prompting.json` lies in the adapter's folder, in the merged model's and next to each GGUF file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gemma_ops.config.training import Thinking
from gemma_ops.data.published import template_name
from gemma_ops.errors import ModelError
from gemma_ops.runs.durable import write_json

FILE = "prompting.json"


@dataclass(frozen=True)
class Prompting:
    """The mode of thinking and the chat template of a training."""

    thinking: Thinking
    template: str
    """SHA-256 of the template's text, in hex."""
    template_name: str
    """Name of the template; "unknown" for one that gemma-ops doesn't know."""

    @classmethod
    def of(cls, thinking: Thinking, template: str) -> Prompting:
        """Return the record of a training in this mode, with the text of its template."""
        digest = hashlib.sha256(template.encode()).hexdigest()
        return cls(thinking, digest, template_name(template) or "unknown")

    @property
    def asks_to_think(self) -> bool:
        """True if questions are asked with thinking on. A model trained in both modes (`mixed`) is asked without."""
        return self.thinking == "on"


def write_prompting(folder: Path, prompting: Prompting) -> None:
    """Write the record into a model's folder."""
    write_json(folder / FILE, asdict(prompting), indent=1)


def read_prompting(folder: Path | None) -> Prompting | None:
    """Read the record in a model's folder, or in the one below it that holds the weights; None where there is none.

    Raises ModelError for a file that says something else.
    """
    for place in (folder, *(folder / name for name in ("adapter", "tuned", "model"))) if folder else ():
        if (place / FILE).is_file():
            try:
                return Prompting(**json.loads((place / FILE).read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ModelError(
                    f"{place / FILE} can't be read: {error}", "train again, or take the file away"
                ) from error
    return None
