"""What quantization changed in a file, as the step that made it measured it."""

from __future__ import annotations

from typing import Any

from gemma_ops.verdicts.record import Number, VerdictRecord


class FileFidelity(VerdictRecord):
    """Divergence of a quantized file's next-token probabilities from the bf16 file's, in nats, in the engine that runs
    it; intervals are 95 %."""

    kl: Number
    """On the tokens of answers."""
    kl_interval: tuple[Number, Number]
    every_token_kl: Number
    """On every token, those of prompts among them."""
    every_token_interval: tuple[Number, Number]
    top1: Number
    """Share of every token's positions at which the likeliest next token is the same."""
    general_kl: Number | None = None
    """On every token of prompts that belong to no domain."""
    general_interval: tuple[Number, Number] | None = None
    conversations: int
    """Validation rows that were compared."""
    fit: str | None = None
    """How the file was fitted to the training rows (`quantize.fit`); None for a plain file."""
    plain_kl: Number | None = None
    """Divergence on every token of the plain file of the same bytes."""
    ratio: Number | None = None
    """Divergence on every token as a share of the plain file's."""
    ratio_interval: tuple[Number, Number] | None = None
    frontier: tuple[tuple[int, Number], ...] = ()
    """Bytes and predicted divergence on every token of files with other mixes of types, the smallest first; empty for
    files that are no mix."""

    @classmethod
    def of_report(cls, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return the record's content from a format's part of the step's `report.json`; None for the bf16 file, and for
        a report of before that measured every token."""
        found = body.get("fidelity") or {}
        every = found.get("every_token")
        if every is None:
            return None
        made = {
            "kl": found["kl"],
            "kl_interval": found["kl_interval"],
            "every_token_kl": every["kl"],
            "every_token_interval": every["kl_interval"],
            "top1": every["top1"],
            "conversations": every["conversations"],
        }
        if general := body.get("general"):
            made |= {"general_kl": general["kl"], "general_interval": general["kl_interval"]}
        if fit := body.get("fit"):
            gain = fit["gain"]["every_token"]
            made |= {
                "fit": fit["how"],
                "plain_kl": fit["plain"]["every_token"]["kl"],
                "ratio": gain["kl_ratio"],
                "ratio_interval": gain["kl_ratio_interval"],
            }
        if mix := body.get("mix"):
            made["frontier"] = mix["frontier"]
        return made
