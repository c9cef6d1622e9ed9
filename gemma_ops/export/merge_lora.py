"""A PEFT LoRA adapter folder read as updates to named tensors of a base checkpoint.

The update of a linear layer is `scale * B @ A`, scale = alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA
(https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2312.03732). Gemma 4's experts are 3-D parameters; PEFT stores
their factors with the experts folded into the rank: A as (experts * r, in), B as (out, r * experts) with the expert
index running fastest (peft 0.21, `ParamWrapper`). DoRA (https://arxiv.org/abs/2402.09353) then gives each row of the
sum the length it learned.

Anything an adapter can hold that is not such an update is refused by name: folding a part of it would give a model
that is neither the base nor what was trained, and nobody would notice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint, read_checkpoint_json
from gemma_ops.modeling.shards import TensorEntry, read_header, read_range

WEIGHTS = "adapter_model.safetensors"
# Settings of PEFT's LoraConfig under which the update is more, or other, than scale * B @ A on the given base.
_REFUSED = {
    "use_qalora": "QA-LoRA pools its input",
    "use_bdlora": "BD-LoRA is block diagonal",
    "velora_config": "VeLoRA changes the factors",
    "kasa_config": "KaSA changes the base weight",
    "arrow_config": "Arrow routes between adapters",
    "alora_invocation_tokens": "an activated LoRA is only on after certain tokens",
    "trainable_token_indices": "it trained embedding rows",
    "modules_to_save": "it carries whole modules of its own",
    "layer_replication": "it repeats layers",
    "lora_bias": "it trained biases",
    "fan_in_fan_out": "its weights are transposed",
}
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(.+)\.lora_(?:([AB])(?:\.\w+)?\.weight|magnitude_vector(?:\.\w+)?(?:\.weight)?)"
)
_REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Update:
    """An update of one base tensor: `scale * B @ A` is added, for each expert when `experts` is more than one;
    `magnitude` is the length of each row of the result with DoRA."""

    target: str
    a: TensorEntry
    b: TensorEntry
    scale: float
    experts: int
    magnitude: TensorEntry | None = None

    def merged(self, entry: TensorEntry) -> Iterator[torch.Tensor]:
        """Yield the new tensor in fp32, one expert at a time where there are several; `entry` is the base's."""
        size = (entry.stop - entry.start) // self.experts
        for expert, delta in enumerate(self.deltas()):
            weight = read_range(entry, entry.start + expert * size, entry.start + (expert + 1) * size)
            found = weight.reshape(delta.shape).float() + delta
            if self.magnitude is not None:
                length = read_range(self.magnitude, self.magnitude.start, self.magnitude.stop).float()
                found *= (length / torch.linalg.norm(found, dim=1))[:, None]
            yield found

    def deltas(self) -> Iterator[torch.Tensor]:
        """Yield the update in fp32, (out, in), of each expert in turn; of the one matrix of a linear layer."""
        a, b = (read_range(entry, entry.start, entry.stop).reshape(entry.shape).float() for entry in (self.a, self.b))
        a = a.reshape(self.experts, -1, a.shape[1])
        b = b.reshape(b.shape[0], -1, self.experts)
        for expert in range(self.experts):
            yield self.scale * (b[:, :, expert] @ a[expert])


def adapter_folder(path: Path) -> Path:
    """Return the folder with `adapter_config.json`: the path itself or its `adapter/` (what the step `train`
    leaves)."""
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").exists():
            return folder
    raise ModelError(f"{path} holds no LoRA adapter (no adapter_config.json)", "train one, or point at its folder")


def read_updates(folder: Path, base: MergedCheckpoint) -> dict[str, Update]:
    """Return the updates an adapter makes, by name of the base tensor.

    Raises ModelError when the adapter is of a kind that can't be folded, is incomplete, or when any of its tensors
    matches no tensor of the base: PEFT itself only warns then, and the merged model would silently be the base.
    """
    config = read_checkpoint_json(folder / "adapter_config.json", "the adapter's settings")
    _check_kind(folder, config)
    if not (folder / WEIGHTS).exists():
        raise ModelError(f"{folder} lacks {WEIGHTS}", "train again, or copy the whole adapter folder")
    factors: dict[str, dict[str, TensorEntry]] = {}
    for entry in read_header(folder / WEIGHTS):
        match = _FACTOR.fullmatch(entry.name)
        if match is None:
            raise ModelError(
                f"the adapter holds {entry.name!r}, which is not a LoRA factor",
                "retrain with a plain LoRA (no modules_to_save or biases), or serve it unmerged",
            )
        factors.setdefault(match[1], {})[match[2] or "magnitude"] = entry
    if not factors:
        raise ModelError(f"{folder / WEIGHTS} holds no tensors", "train again: the adapter is empty")
    updates: dict[str, Update] = {}
    unmatched = []
    for module, pair in sorted(factors.items()):
        if set(pair) != {"A", "B"} | ({"magnitude"} if config.get("use_dora") else set()):
            raise ModelError(f"the adapter has only {', '.join(sorted(pair))} of {module}", "train again")
        target = _target(module, pair["A"], pair["B"], base)
        if target is None or target in updates:
            unmatched.append(module)
            continue
        updates[target] = _update(module, target, pair, config, base.entries[target])
    if unmatched:
        raise ModelError(
            f"{len(unmatched)} of {len(factors)} adapted modules match no tensor of {base.folder}, "
            f"first {unmatched[0]!r}: loaded like this the adapter would do nothing there",
            "merge into the very base the adapter was trained on",
        )
    return updates


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    fix = "train a plain LoRA (train.lora), or serve this adapter unmerged"
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} is a {config.get('peft_type')} adapter, not LoRA", fix)
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise ModelError(f"{folder} can't be folded into the base ({key}: {reason})", fix)
    if config.get("bias", "none") != "none":
        raise ModelError(f"{folder} can't be folded into the base (bias: it trained biases)", fix)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REWRITES_BASE):
        raise ModelError(
            f"{folder} was started with {start}, which changes the base weights the adapter belongs to",
            "convert it to a plain LoRA first (PEFT's path_initial_model_for_weight_conversion)",
        )


def _target(module: str, a: TensorEntry, b: TensorEntry, base: MergedCheckpoint) -> str | None:
    """Return the name of the base tensor that a module's LoRA matrices update, or None.

    An adapter trained on the text-only class says `model.layers…` where the checkpoint says
    `model.language_model.layers…`; nested wrappers of PEFT add `.base_layer`.
    """
    module = re.sub(r"\.base_layer\b", "", module)
    spellings = [module, re.sub(r"^model\.(?!language_model\.)", "model.language_model.", module)]
    spellings.append(module.replace("model.language_model.", "model.", 1))
    for spelling in spellings:
        if f"{spelling}.weight" in base.entries:
            return f"{spelling}.weight"
        stacks = [
            f"{spelling}.{part}" for part in ("gate_up_proj", "down_proj") if f"{spelling}.{part}" in base.entries
        ]
        fitting = [name for name in stacks if base.entries[name].shape[1:] == (b.shape[0], a.shape[1])]
        if len(fitting) == 1:
            return fitting[0]
    return None


def _update(
    module: str, target: str, pair: dict[str, TensorEntry], config: dict[str, Any], weight: TensorEntry
) -> Update:
    a, b = pair["A"], pair["B"]
    experts = weight.shape[0] if len(weight.shape) == 3 else 1
    if (b.shape[0], a.shape[1]) != weight.shape[-2:] or a.shape[0] != b.shape[1] or a.shape[0] % experts:
        raise ModelError(
            f"the adapter's factors {b.shape} @ {a.shape} do not fit {target} {weight.shape}",
            "merge into the very base the adapter was trained on",
        )
    rank = a.shape[0] // experts
    path = re.sub(r"\.base_layer\b", "", module)
    if experts > 1:
        path += "." + target.rsplit(".", 1)[1]
    alpha = float(_pattern(config.get("alpha_pattern"), path, config["lora_alpha"]))
    if rank != int(_pattern(config.get("rank_pattern"), path, config["r"])):
        raise ModelError(
            f"{path} has rank {rank} in {WEIGHTS} but another one in adapter_config.json", "copy both files again"
        )
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Update(target, a, b, scale, experts, pair.get("magnitude"))


def _pattern(patterns: dict[str, Any] | None, path: str, otherwise: Any) -> Any:
    """Return the value of PEFT's `rank_pattern` or `alpha_pattern`: that of the first key that matches the end of the
    module path."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return otherwise
