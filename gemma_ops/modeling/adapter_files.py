"""Adapters on disk: saved whole and in a form that every engine reads, loaded without silent loss.

What is written is a plain PEFT adapter for the published base, whatever it was trained on (4-bit, text only, a base
that PiSSA rewrote): `peft.PeftModel.from_pretrained` on transformers' own model gives the logits of the training.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

from gemma_ops.errors import ModelError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_MODULE = re.compile(r"^base_model\.model\.(.*)\.lora_A\..*$")


def save_adapter(
    model: Any,
    folder: Path,
    base: str,
    revision: str | None,
    *,
    state: dict[str, Any] | None = None,
    trained: bool = True,
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, naming the base by id, not by where it lies here.

    `state` is the whole state dict where parameters are spread over processes. Raises ModelError when what was written
    is not a whole adapter: tensors without numbers (a sharded state that was not gathered), infinite ones, or, when it
    was `trained`, factors that are still zero.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from gemma_ops.modeling import inits

    final, folder = folder, folder / ".partial"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), safe_serialization=True, **({"state_dict": state} if state is not None else {}))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    taken = getattr(model, "taken_from_base", None)
    if taken:
        tensors = inits.plain_init(load_file(str(folder / WEIGHTS)), taken)
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
        config = inits.plain_settings(config)
    config |= {"base_model_name_or_path": base, "revision": revision, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _check(final, sum(hasattr(module, "lora_A") for module in model.modules()), load_file(str(folder / WEIGHTS)))
    if trained and not any(torch.count_nonzero(tensor) for tensor in _second(load_file(str(folder / WEIGHTS)))):
        raise ModelError(
            f"the adapter for {final} learned nothing: its LoRA B matrices are all zero", "train longer, or report it"
        )
    _publish(folder, final)


def _publish(partial: Path, folder: Path) -> None:
    """Move both files into place. Without its settings a folder is no adapter, so they go first and come last."""
    shutil.copymode(
        partial / CONFIG, partial / WEIGHTS
    )  # safetensors writes for its owner alone, whatever the umask says
    (folder / CONFIG).unlink(missing_ok=True)
    (partial / WEIGHTS).replace(folder / WEIGHTS)
    (partial / CONFIG).replace(folder / CONFIG)
    shutil.rmtree(partial)


def _second(tensors: dict[str, Any]) -> list[Any]:
    return [tensor for name, tensor in tensors.items() if ".lora_B." in name]


def _check(folder: Path, adapted: int, tensors: dict[str, Any]) -> None:
    """Read back what was written, and check it."""
    import torch

    fix = "report it; with sharded parameters, the state must be gathered before it is saved"
    pairs = len(_second(tensors))
    if pairs != adapted:
        raise ModelError(f"{folder} holds {pairs} of {adapted} adapted modules", fix)
    for name, tensor in tensors.items():
        if not tensor.numel():
            raise ModelError(f"{name} in {folder} has no numbers", fix)
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{name} in {folder} is infinite or not a number: the training diverged",
                "lower train.learning_rate, and start again",
            )


def reprefix(name: str, wrapped: bool) -> str:
    """Rename an adapter tensor between the text-only class (`model.layers.…`) and the wrapper
    (`model.language_model.layers.…`)."""
    plain = name.replace("model.language_model.layers.", "model.layers.")
    return plain.replace("model.layers.", "model.language_model.layers.") if wrapped else plain


def load_adapter(model: Any, folder: Path) -> Any:
    """Put a saved adapter on a loaded base, re-prefixing tensors of the other model class.

    Raises ModelError when the folder holds no whole LoRA adapter, when a tensor finds no place, when the model expects
    one that is not there, or when the adapter changes nothing (its LoRA B matrices are all zero).
    """
    import peft
    import torch
    from peft.utils import set_peft_model_state_dict

    from gemma_ops.modeling import expert_lora

    config, stored = _read(folder)
    modules = dict(model.named_modules())
    wrapped = "model.language_model" in modules
    tensors = {reprefix(name, wrapped): tensor for name, tensor in stored.items()}
    if not config.use_dora and not any(torch.count_nonzero(tensor) for tensor in _second(tensors)):
        raise ModelError(f"the adapter in {folder} changes nothing: its LoRA B matrices are all zero", "train it again")
    # Whatever way the targets were written, what was trained is what has tensors.
    experts = {name for names in expert_lora.targets(list(tensors)).values() for name in names}
    adapted = sorted({_MODULE.sub(r"\1", name) for name in set(tensors) - experts if ".lora_A." in name})
    foreign = [name for name in adapted if name not in modules]
    if foreign:
        raise ModelError(
            f"the adapter in {folder} does not fit this base: {len(foreign)} of {len(adapted)} modules are not there, "
            f"the first: {foreign[0]}",
            "use the base named in its adapter_config.json",
        )
    config.target_modules, stacks, config.target_parameters = adapted, config.target_parameters or [], None
    tuned = peft.get_peft_model(model, config)
    if experts:
        config.target_parameters = stacks
        expert_lora.inject(tuned, config, _ranks(tuned, config, tensors))
    try:
        result = set_peft_model_state_dict(tuned, tensors)
    except RuntimeError as error:
        raise ModelError(
            f"the adapter in {folder} does not fit this base: {str(error).splitlines()[-1].strip()}",
            "use the base named in its adapter_config.json",
        ) from error
    lacking = [name for name in result.missing_keys if ".lora_" in name]
    if result.unexpected_keys or lacking:
        first = (list(result.unexpected_keys) + lacking)[0]
        raise ModelError(
            f"the adapter in {folder} does not fit this base: {len(result.unexpected_keys)} tensors find no place, "
            f"{len(lacking)} are lacking, the first: {first}",
            "use the base named in its adapter_config.json",
        )
    return tuned.eval()


def _read(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Read the settings and tensors of an adapter folder. Raises ModelError for what is half there, or no LoRA."""
    import peft
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder} holds no whole adapter: {name} is missing", "train again, or copy both files")
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("peft_type")
        tensors = load_file(str(folder / WEIGHTS))
    except (ValueError, AttributeError, SafetensorError) as error:
        raise ModelError(f"the adapter in {folder} can't be read: {error}", "copy both files again") from error
    if kind != "LORA":
        raise ModelError(
            f"{folder} is a {kind} adapter, not LoRA", "train one with gemma-ops, or with PEFT's LoraConfig"
        )
    return peft.LoraConfig.from_pretrained(str(folder)), tensors


def _ranks(tuned: Any, config: Any, tensors: dict[str, Any]) -> dict[str, tuple[int, float]]:
    """Return (rank, alpha) of each adapted stack: the rank of its LoRA matrices, the alpha of the settings.

    PEFT nests the wrappers in the order of the parameters, so the last adapted stack is the outermost.
    """
    from gemma_ops.modeling import expert_lora
    from gemma_ops.modeling.experts import STACKS

    found = {}
    count = next((module.num_experts for _, _, module in expert_lora.modules(tuned)), 1)
    named = [stack for stack in STACKS if any(target.endswith(stack) for target in config.target_parameters)]
    by_depth = expert_lora.targets(list(tensors))
    for stack, depth in zip(reversed(named), sorted(by_depth, key=len), strict=True):
        first = next(name for name in by_depth[depth] if ".lora_A." in name)
        rank = math.ceil(tensors[first].shape[0] / count)
        found[stack] = rank, float((config.alpha_pattern or {}).get(f"experts.{stack}", config.lora_alpha))
    return found
