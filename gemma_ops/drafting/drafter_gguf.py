"""The GGUF file of a drafter, for llama.cpp: architecture `gemma4-assistant`.

Names and keys: llama.cpp, `conversion/gemma.py` (Gemma4AssistantModel) and `src/models/gemma4-assistant.cpp`, as in
llama-cpp-python 0.3.36. llama.cpp takes keys, values and the embeddings of tokens from the target, and computes the
whole head: the centroids of E2B's and E4B's drafters are left out, as its own converter leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_ops.config import Privacy
from gemma_ops.errors import ModelError
from gemma_ops.export import gguf_metadata, gguf_tokenizer
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import PlannedTensor, layer_tensor_name, tensor_type
from gemma_ops.export.gguf_writer import stream_gguf
from gemma_ops.export.tensor_bytes import TensorBytes, tensor_pieces
from gemma_ops.family.formats import GGUF, GgufName
from gemma_ops.privacy.classes import GGUF_KEY

ARCHITECTURE = "gemma4-assistant"
ORDERING = "masked_embedding.token_ordering"
_MODEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "pre_projection.weight": "nextn.pre_projection.weight",
    "post_projection.weight": "nextn.post_projection.weight",
}
_LEFT_OUT = ("masked_embedding.", "lm_head.")
"""Beginnings of the names of tensors that llama.cpp doesn't read: the clusters, and a head that is the embedding."""


class DrafterCheckpoint(MergedCheckpoint):
    """A drafter's folder, whose configuration is that of its layers; `drafter` holds what stands around it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.drafter: dict[str, Any] = self.config
        self.config = self.text

    def _check_plain(self) -> None:
        self.entries.pop(ORDERING, None)  # numbers of tokens, which are whole
        super()._check_plain()


def plan_drafter(source: DrafterCheckpoint, form: GgufName) -> list[PlannedTensor]:
    """Return the tensors of a drafter's file in the format. Raises ModelError for one that llama.cpp has no place
    for."""
    half = len(gguf_metadata.rope_factors(source))
    tensors = [PlannedTensor("rope_freqs.weight", None, (half,), "F32")]
    for name, entry in source.entries.items():
        if name.startswith(_LEFT_OUT):
            continue
        target = _MODEL.get(name) or layer_tensor_name(name)
        if target is None:
            raise ModelError(
                f"no place for {name} in llama.cpp's drafter of Gemma 4", "take a drafter as it was published"
            )
        extent = entry.shape or (1,)
        tensors.append(PlannedTensor(target, entry, extent, tensor_type(target, extent, form)))
    return tensors


def write_drafter_gguf(
    folder: Path, target: Path, out: Path, form: GgufName = "bf16", *, learned: Privacy = "any"
) -> None:
    """Write the file `out` from the drafter in `folder`, with the tokenizer of the checkpoint `target`; `learned` is
    the class of the rows behind it.

    Raises ModelError for a drafter that llama.cpp can't run.
    """
    source = DrafterCheckpoint(folder)
    width, own = int(source.drafter["backbone_hidden_size"]), int(source.text["hidden_size"])
    if width == own:
        raise ModelError(
            f"llama.cpp takes no drafter that is as wide as its target ({width})", "serve it with vLLM or transformers"
        )

    def describe(writer: Any) -> None:
        gguf_metadata.add_metadata(writer, source, GGUF[form].file_type)
        writer.add_embedding_length_out(width)
        writer.add_nextn_predict_layers(int(source.text["num_hidden_layers"]))
        writer.add_string(GGUF_KEY, learned)
        gguf_tokenizer.add_tokenizer(writer, MergedCheckpoint(target))

    def data(tensor: PlannedTensor) -> Iterable[bytes]:
        plain = TensorBytes()
        return (plain.encode(tensor, *piece) for piece in tensor_pieces(source, tensor))

    stream_gguf(out, ARCHITECTURE, form, plan_drafter(source, form), describe, data)
