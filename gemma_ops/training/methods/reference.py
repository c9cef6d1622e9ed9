"""The reference model of DPO and KTO, the model as it was at the start, without a second copy of anything.

With an adapter that starts as no change the reference is the base with the adapter switched off, asked next to the
policy in every step. Where the start is something else (PiSSA and OLoRA move the base's weights into the adapter; with
all parameters learning there is no base left), the reference's log-probabilities are computed once, before the first
step.

TRL would put a second adapter next to the first, as a copy to refer to. That costs memory, and with PiSSA ruins the
model: making the second adapter takes its principal part out of the base's weights once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def starts_at_base(model: Any) -> bool:
    """True if switching the adapter off gives back the model as it is now: its LoRA B matrices are all zero."""
    if not hasattr(model, "disable_adapter"):
        return False
    return not any(torch.count_nonzero(p) for name, p in model.named_parameters() if ".lora_B" in name)


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Protect the model while a TRL trainer is made: no second adapter appears, and what learns keeps its values and
    its type.

    For a 4-bit base TRL rounds the adapter to bfloat16, whose 8 bits of mantissa lose most updates of a small learning
    rate.
    """
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    wrapped = hasattr(model, "add_adapter")
    if wrapped:
        model.add_adapter = lambda *_, **__: None
        model.get_parameter = lambda name: type(model).get_parameter(model, name.replace(".ref.", ".default."))
    try:
        yield
    finally:
        if wrapped:
            del model.add_adapter, model.get_parameter
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data = kept[name]
