"""LoRA+: LoRA B learns faster than LoRA A (arXiv 2402.12354, equation 2)."""

from __future__ import annotations

from typing import Any


def lora_plus_groups(optimizer: Any, model: Any, plus: float) -> Any:
    """Return the optimizer with each group parted in two: all other parameters, and the LoRA B matrices with `plus`
    times its rate.

    Parting an optimizer a second time changes nothing.
    """
    if plus == 1.0 or getattr(optimizer, "plus", 1.0) == plus:
        return optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        fast = [p for p in group["params"] if ".lora_B" in names.get(id(p), "")]
        slow = [p for p in group["params"] if ".lora_B" not in names.get(id(p), "")]
        for params, factor in ((slow, 1.0), (fast, plus)):
            if params:
                optimizer.add_param_group({**group, "params": params, "lr": group["lr"] * factor})
    optimizer.plus = plus
    return optimizer
