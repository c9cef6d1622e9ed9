"""The files of a model folder that are not weights: config in both spellings, stop ids, tokenizer, template,
processor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gemma_ops.data import published
from gemma_ops.errors import MachineError, ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint, read_checkpoint_json
from gemma_ops.family import Shape
from gemma_ops.modeling.generate import STOPS
from gemma_ops.runs.durable import write_json, write_text

# Copied as they are when the base has them; engines read the processor files for images and audio.
CARRIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "LICENSE",
    "NOTICE",
)


def both_spellings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with head dimensions of the full-attention layers in both spellings.

    transformers 5.15 and later write `per_layer_config`; Google's files, and readers older than that, say
    `global_head_dim` and `num_global_key_value_heads`, the latter in force only with `attention_k_eq_v` (transformers
    5.23, `Gemma4TextConfig.__post_init__`). With both, every reader agrees on the same file. Raises ModelError when the
    layers differ in a way the second spelling can't say.
    """
    shape = Shape.from_config(config)
    found = {(layer.head_dim, layer.kv_heads) for layer in shape.layers if layer.window is None}
    if len(found) != 1:
        raise ModelError(
            f"the full-attention layers have different (head dimension, KV heads): {sorted(found)}",
            "restore the config.json the checkpoint was published with",
        )
    dimension, heads = found.pop()
    text = dict(config.get("text_config") or config)
    facts = {"head_dim": dimension}
    if text.get("attention_k_eq_v"):
        facts["num_key_value_heads"] = heads
    text["per_layer_config"] = {str(layer.index): facts for layer in shape.layers if layer.window is None}
    text["global_head_dim"] = dimension
    text["num_global_key_value_heads"] = facts.get("num_key_value_heads")
    return {**config, "text_config": text} if "text_config" in config else text


def carry_over(base: MergedCheckpoint, out: Path) -> list[str]:
    """Write config, generation config, tokenizer, template and processor of `base` to `out`, and return their names.

    Raises ModelError when the base has no tokenizer: a model folder without one can be served by nobody.
    """
    copied = [name for name in CARRIED if (base.folder / name).exists()]
    if "tokenizer.json" not in copied:
        raise ModelError(f"{base.folder} has no tokenizer.json", "fetch the tokenizer files of the base model as well")
    for name in copied:
        temporary = out / (name + ".tmp")
        shutil.copyfile(base.folder / name, temporary)
        temporary.replace(out / name)
    if published.checkpoint_template(base.folder) is None:
        # Base (not -it) checkpoints ship none, and a tuned model is useless without the one it was trained with.
        write_text(out / "chat_template.jinja", published.template_of(base.folder))
        copied.append("chat_template.jinja")
    write_json(out / "config.json", both_spellings(base.config), indent=2)
    write_json(out / "generation_config.json", _generation(base.folder), indent=2)
    return sorted([*copied, "config.json", "generation_config.json"])


def token_ids(folder: Path) -> dict[str, int]:
    """Return the ids of the tokens a tokenizer marks as added (special ones among them), by content."""
    tokenizer = read_checkpoint_json(folder / "tokenizer.json", "the tokenizer")
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def _generation(folder: Path) -> dict[str, Any]:
    """Return the base's generation settings with every stop token of Gemma 4 that the tokenizer knows."""
    path = folder / "generation_config.json"
    settings = read_checkpoint_json(path, "generation settings") if path.exists() else {}
    stops = settings.get("eos_token_id") or []
    stops = [stops] if isinstance(stops, int) else list(stops)
    known = token_ids(folder)
    settings["eos_token_id"] = stops + [known[token] for token in STOPS if token in known and known[token] not in stops]
    return settings


def check_room(target: Path, needed: int) -> None:
    """Refuse before writing when the disk can't hold `needed` more bytes. Raises MachineError."""
    free = shutil.disk_usage(target).free
    if needed > free:
        raise MachineError(
            f"the files need {needed / 1e9:.3f} GB more, and {target} has {free / 1e9:.3f} GB free",
            "free some space, or set machine.runs to a larger disk, and run the same command again",
        )
