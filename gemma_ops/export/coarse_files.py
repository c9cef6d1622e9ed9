"""Files that are refused because a model of this size was found not to bear them."""

from __future__ import annotations

from gemma_ops.config import QuantizeConfig
from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import GGUF

LEAST_BITS = {"E4B": 5.0}
"""Bits a weight of attention and MLP below which files that are not fitted are refused, by size. E4B: perplexity 7.1 in
BF16 and 23 in Q4_K_M, where E2B goes from 8.3 to 9.1 (llama.cpp issue 22407)."""
_FITTED = ("rounding", "scales")
"""Fits that change codes: what they give is measured and gated, where importance alone rounds as llama.cpp does."""


def check_coarse(settings: QuantizeConfig, size: str | None) -> None:
    """Raise ConfigError where a format has fewer bits than a model of this size bears without a fit, and
    `quantize.coarse` is not set. A mixed file chooses by what it measures."""
    least = LEAST_BITS.get(size or "")
    if least is None or settings.coarse or settings.fit in _FITTED:
        return
    asked = [GGUF[name] for name in settings.formats if name in GGUF]
    coarse = [form.name for form in asked if form.bits < least and not form.mixed]
    if coarse:
        enough = [name for name, form in GGUF.items() if least <= form.bits < 8 and not form.mixed]
        raise ConfigError(
            f"quantize.formats asks for {', '.join(coarse)}, and {size} below {least:g} bits a weight loses its "
            f"language when it is only rounded (llama.cpp issue 22407: perplexity 7.1 to 23)",
            f"fit the file (quantize.fit=scales), take {' or '.join(enough)}, or make it all the same with "
            f"quantize.coarse=true",
        )
