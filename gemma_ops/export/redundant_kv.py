"""The keys and values that layers which take them from an earlier layer have in Google's files, and that no model
reads.

`merge` carries them along. transformers drops them when it saves a model, and some engines have refused checkpoints
without them.
"""

from __future__ import annotations

from collections.abc import Sequence

from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.family import Shape


def redundant_names(source: MergedCheckpoint) -> list[str]:
    """Return the tensors of layers that take keys and values from an earlier one, which no model reads: those that the
    checkpoint holds."""
    layers = {layer.index for layer in Shape.from_config(source.config).layers if layer.shares_kv}
    parts = ("k_proj.weight", "v_proj.weight", "k_norm.weight")
    return [
        name
        for name in source.entries
        if "layers." in name and name.split("self_attn.")[-1] in parts and _layer(name) in layers
    ]


def check_redundant(source: MergedCheckpoint) -> None:
    """Raise ModelError where layers share keys and values and the checkpoint has none for them."""
    shares = any(layer.shares_kv for layer in Shape.from_config(source.config).layers)
    if shares and not redundant_names(source):
        raise ModelError(
            f"quantize.redundant_kv: {source.folder} has no keys and values for layers that share them: it was saved "
            "by transformers, which drops them",
            "start from the checkpoint as Google publishes it, or leave quantize.redundant_kv out",
        )


def belongs_to(name: str, shared: Sequence[str]) -> bool:
    """True for a tensor, or a part of one, whose name without its last part is that of a redundant one."""
    return name.rpartition(".")[0] in {each.rpartition(".")[0] for each in shared}


def _layer(name: str) -> int:
    return int(name.rsplit("layers.", maxsplit=1)[-1].split(".", maxsplit=1)[0])
