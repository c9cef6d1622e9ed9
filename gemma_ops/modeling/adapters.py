"""LoRA adapters: put on where they belong, saved without a trace of this machine, loaded without silent loss.

PEFT fails quietly in three ways with this family: suffix targets reach into the vision and audio towers, `all-linear`
reaches routers and per-layer projections that serving engines then ignore, and an adapter whose names don't match the
model loads as nothing at all. So targets are one anchored expression, what it matched is checked, and after loading
every tensor of the file must be in the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_ops import family
from gemma_ops.config import LoraConfig
from gemma_ops.errors import ConfigError, ModelError

_MODULE = re.compile(r"^base_model\.model\.(.*)\.lora_A\..*$")
_TOWER = re.compile(r"\.(?:vision_tower|audio_tower|embed_vision|embed_audio)\.")
_FORBIDDEN = re.compile(r"vision|audio|router|per_layer|embed_tokens|lm_head")


def attach(model: Any, settings: LoraConfig, seed: int, *, shown: Sequence[str] = ()) -> Any:
    """Wrap a loaded model with a fresh adapter in float32, initialised from `seed`.

    `shown`: what the rows show, of `image` and `audio`; with `settings.towers` those towers are adapted too. Raises
    ConfigError when the targets match nothing, or reach a part of the model that must not be adapted.
    """
    import peft
    import torch

    targets = family.LORA_TARGETS if settings.targets == "default" else settings.targets
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(
            f"train.lora.targets is not a regular expression: {error}", "use `default`, or correct it"
        ) from error
    matched = [name for name, module in model.named_modules() if pattern.fullmatch(name) and hasattr(module, "weight")]
    if not matched:
        raise ConfigError(
            f"train.lora.targets matches no module: {targets}",
            "use `default` (attention and MLP of the language model)",
        )
    if settings.towers:
        towers = "|".join(family.TOWER_TARGETS[kind] for kind in shown) or "(?!)"
        if not any(re.fullmatch(towers, name) for name, _ in model.named_modules()):
            raise ConfigError(
                "train.lora.towers adapts what the model sees and hears with, and no row shows anything",
                "leave it out, or give rows with images or audio",
            )
        targets = f"(?:{targets})|{towers}"
    wrong = [name for name in matched if _FORBIDDEN.search(name)]
    if wrong:
        raise ConfigError(
            f"train.lora.targets reaches {len(wrong)} modules that must not be adapted, for example {wrong[0]}",
            "towers, routers, per-layer projections and embeddings stay frozen: use `default`",
        )
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def save(model: Any, folder: Path, base: str, revision: str | None) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, naming the base by id, not by where it lies here."""
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    config["revision"] = revision
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def reprefix(name: str, wrapped: bool) -> str:
    """Rename an adapter tensor between the text-only class (`model.layers.…`) and the wrapper (`model.language_model.layers.…`)."""
    plain = name.replace("model.language_model.layers.", "model.layers.")
    return plain.replace("model.layers.", "model.language_model.layers.") if wrapped else plain


def reaches_towers(folder: Path) -> bool:
    """Whether a saved adapter changes what the model sees or hears with, so that its base must be loaded with towers."""
    from safetensors import safe_open

    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as file:
        return any(_TOWER.search(name) for name in file.keys())  # noqa: SIM118 (no mapping)


def load(model: Any, folder: Path) -> Any:
    """Put a saved adapter on a loaded base, re-prefixing tensors of the other model class.

    Raises ModelError when a tensor finds no place, when the model expects one that is not there, or when the adapter
    changes nothing (its B factors are all zero).
    """
    import peft
    import torch
    from peft.utils import set_peft_model_state_dict
    from safetensors.torch import load_file

    config = peft.LoraConfig.from_pretrained(str(folder))
    modules = dict(model.named_modules())
    wrapped = "model.language_model" in modules
    tensors = {
        reprefix(name, wrapped): tensor for name, tensor in load_file(str(folder / "adapter_model.safetensors")).items()
    }
    if not any(torch.count_nonzero(tensor) for name, tensor in tensors.items() if ".lora_B." in name):
        raise ModelError(f"the adapter in {folder} changes nothing: its B factors are all zero", "train it again")
    # Whatever way the targets were written, what was trained is what has tensors.
    targets = sorted({_MODULE.sub(r"\1", name) for name in tensors if ".lora_A." in name})
    foreign = [name for name in targets if name not in modules]
    if foreign and not config.target_parameters:
        raise ModelError(
            f"the adapter in {folder} does not fit this base: {len(foreign)} of {len(targets)} modules are not there, the first: {foreign[0]}",
            "use the base named in its adapter_config.json",
        )
    if not config.target_parameters:
        config.target_modules = targets
    tuned = peft.get_peft_model(model, config)
    result = set_peft_model_state_dict(tuned, tensors)
    lacking = [name for name in result.missing_keys if ".lora_" in name]
    if result.unexpected_keys or lacking:
        first = (list(result.unexpected_keys) + lacking)[0]
        raise ModelError(
            f"the adapter in {folder} does not fit this base: {len(result.unexpected_keys)} tensors find no place, {len(lacking)} are lacking, the first: {first}",
            "use the base named in its adapter_config.json",
        )
    return tuned.eval()
