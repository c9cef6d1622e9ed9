"""What a person has released: answers of models that learned from rows which may not leave the machine."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from gemma_ops.config.section import ConfigSection


class ReleaseConfig(ConfigSection):
    """A release of the answers of this run's models. The rows themselves stay what they are: it says that a model trained
    on them may answer before judges and services all the same. Never part of a fingerprint; recorded wherever it counts."""

    to: Literal["paid", "any"] | None = None
    """How far answers of models that learned from stricter rows may go; null keeps them where those rows may be."""
    reason: str = ""
    """Who decided it and why; it stands in verdicts, judges' reports, manifests and cards."""

    @model_validator(mode="after")
    def _told(self) -> ReleaseConfig:
        if self.to and len(self.reason.strip()) < 8:
            raise ValueError("release.to needs release.reason: who decided that these models may be shown, and why")
        if self.reason and not self.to:
            raise ValueError("release.reason stands alone: set release.to to paid or any")
        return self
