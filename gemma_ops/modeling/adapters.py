"""LoRA adapters put on a loaded model; `adapter_files` saves and loads them.

PEFT fails quietly in three ways with this family: suffix targets reach into the vision and audio towers, `all-linear`
reaches routers and per-layer projections that serving engines then ignore, and an adapter whose names don't match the
model loads as nothing at all. So targets are one anchored expression, what it matched is checked, and after loading
every tensor of the file must be in the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gemma_ops import family
from gemma_ops.config import LoraConfig
from gemma_ops.errors import ConfigError
from gemma_ops.modeling.adapter_files import load_adapter, reprefix, save_adapter

__all__ = ["attach", "load_adapter", "reprefix", "rewrites_base", "save_adapter"]

_FORBIDDEN = re.compile(r"router|per_layer|embed_tokens|lm_head")
_TOWERS = re.compile(r"vision|audio")


def attach(model: Any, settings: LoraConfig, seed: int, *, shown: Sequence[str] | None = None) -> Any:
    """Wrap a loaded model with a fresh adapter in float32, initialised from `seed`.

    `shown`: what the rows show, of `image` and `audio`; with `settings.towers` those towers are adapted too (None:
    both). Raises ConfigError when the targets match nothing or reach a part of the model that must not be adapted, and
    for settings that don't go together or not with this model.
    """
    import peft
    import torch

    from gemma_ops.modeling import expert_lora, inits

    targets = _targets(model, settings, shown)
    _check(model, settings)
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    tuned = peft.get_peft_model(model, config)
    if settings.dora:
        inits.measure_magnitudes(tuned)
    if settings.experts:
        expert_lora.inject(tuned, config)
        config.target_parameters = list(family.EXPERT_TARGETS)
    if settings.init != "default":
        tuned.taken_from_base = inits.start_factors(tuned, settings.init)
    return tuned


def rewrites_base(settings: LoraConfig) -> bool:
    """True if the base weights in memory are no longer the checkpoint's, so that the model with its adapter switched
    off is not the base and can't be the reference of a preference method."""
    return settings.init in ("pissa", "olora")


def _targets(model: Any, settings: LoraConfig, shown: Sequence[str] | None) -> str:
    """Return the expression PEFT gets, checked against the modules of this model."""
    import torch

    default = settings.targets == "default"
    targets = family.LORA_TARGETS if default else settings.targets
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(
            f"train.lora.targets is not a regular expression: {error}", "use `default`, or correct it"
        ) from error
    names = [
        name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Embedding))
    ]
    matched = [name for name in names if pattern.fullmatch(name)]
    if not matched:
        raise ConfigError(
            f"train.lora.targets matches no module: {targets}",
            "use `default` (attention and MLP of the language model)",
        )
    wrong = [name for name in matched if _FORBIDDEN.search(name) or (_TOWERS.search(name) and not settings.towers)]
    if wrong:
        raise ConfigError(
            f"train.lora.targets reaches {len(wrong)} modules that must not be adapted, for example {wrong[0]}",
            "routers, per-layer projections and embeddings stay frozen, towers too unless train.lora.towers says so: "
            "use `default`",
        )
    if not settings.towers:
        return targets
    if shown is not None and not shown:
        raise ConfigError(
            "train.lora.towers adapts the vision and audio towers, and no row has images or audio",
            "leave it out, or give rows with images or audio",
        )
    towers = "|".join(family.TOWER_TARGETS[kind] for kind in (family.TOWER_TARGETS if shown is None else shown))
    if not any(re.fullmatch(towers, name) for name in names):
        raise ConfigError(
            "train.lora.towers adapts the vision and audio towers, and the loaded model has none",
            "leave it out",
        )
    return rf"(?:{targets})|(?:{towers})" if default else targets


def _check(model: Any, settings: LoraConfig) -> None:
    """Refuse impossible settings, before weights are touched."""
    from gemma_ops.modeling import expert_lora

    four = getattr(model, "is_loaded_in_4bit", False)
    if four and rewrites_base(settings):
        raise ConfigError(
            f"train.lora.init={settings.init} takes a part out of the base weights, which 4 bits can't hold",
            "use train.weights=bf16, or train.lora.init=default or orthogonal",
        )
    if settings.init == "orthogonal" and settings.rank % 2:
        raise ConfigError("train.lora.init=orthogonal needs an even train.lora.rank", f"set {settings.rank + 1}")
    if not settings.experts:
        return
    if not any(expert_lora.modules(model)):
        raise ConfigError(
            "train.lora.experts adapts experts, and this model has none", "leave it out: only 26B-A4B has"
        )
    for key, unset in (("dropout", 0.0), ("dora", False), ("init", "default")):
        if getattr(settings, key) != unset:
            raise ConfigError(
                f"train.lora.experts does not go with train.lora.{key}={getattr(settings, key)}",
                f"set train.lora.{key}={str(unset).lower()}, or adapt attention and MLP only",
            )
