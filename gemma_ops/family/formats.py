"""The formats of weights, in one table: how each is stored, where its files lie, which engines run it, how reports show
it.

Everything that lists formats takes them from here: the keys of the configuration, targets, GGUF files, registered
versions, reports, and what `doctor` and the rendered jobs count. To add a GGUF format: its name in `GgufName`, the type
of its tensors in `TensorType` and `BITS` if that is new, and its row in `_TABLE`.

Sizes of GGML's types: ggml-common.h, blocks of 32 weights that share one float16 scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GgufName = Literal["bf16", "q8_0", "q4_0"]
"""Formats that the step `quantize` writes, as the configuration spells them."""
VersionFormat = Literal["adapter", "merged", GgufName]
"""Formats that a registered version may carry (`register.artifacts`); `adapter` also stands for the changed weights of
a full fine-tune."""
TensorType = Literal["F32", "BF16", "Q8_0", "Q4_0"]
"""GGML types of the tensors that we write."""
Engine = Literal["transformers", "llama.cpp", "vLLM"]

BITS: dict[TensorType, float] = {"F32": 32.0, "BF16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5}
"""Bits per weight of each tensor type, scales included."""
BLOCK = 32
"""Weights that share a scale, by quantized tensor type."""
QUANTIZED_TYPES = tuple(kind for kind, bits in BITS.items() if bits < 16)
TABLE_TYPE: TensorType = "Q8_0"
"""Lowest-precision tensor type for embeddings, per-layer tables and per-layer projections."""
GGUF_FILE = "model.gguf"
"""Name of a GGUF file in the folder of its format."""


@dataclass(frozen=True)
class Format:
    """One way in which a model's weights are stored."""

    name: str
    step: str
    """Step that makes the format."""
    made: str
    """Folder of the format below that step's."""
    shelf: str
    """Folder of the format in a registered version."""
    file: str
    """File without which that folder is incomplete."""
    engines: tuple[Engine, ...]
    """Engines that run the format."""

    @property
    def path(self) -> str:
        """Return the format's file below the step's folder."""
        return f"{self.made}/{self.file}"

    @property
    def place(self) -> str:
        """Return the format's file in a registered version."""
        return f"{self.shelf}/{self.file}"


@dataclass(frozen=True)
class Gguf(Format):
    """One type of GGUF file."""

    name: GgufName
    tensor: TensorType
    """Tensor type of most of the file's weights."""
    file_type: str
    """Name of the file type in llama.cpp (gguf-py, `LlamaFileType`)."""
    most_bits: float
    """Upper bound of the bits per weight of a whole file, for estimates of disk space."""
    default: bool
    """Whether the format is made, evaluated and registered where a configuration names none."""
    css: str
    """CSS class of the format's colour in reports."""
    colours: tuple[str, str]
    """CSS colours on a light and on a dark page."""

    @property
    def bits(self) -> float:
        """Return the bits per weight of the file's main tensor type."""
        return BITS[self.tensor]


def _gguf(
    name: GgufName, tensor: TensorType, most_bits: float, css: str, colours: tuple[str, str], *, default: bool = True
) -> Gguf:
    return Gguf(
        name, "quantize", name, f"quantized/{name}", GGUF_FILE, ("llama.cpp",),
        tensor, f"MOSTLY_{tensor}", most_bits, default, css, colours,
    )  # fmt: skip


_TABLE = (
    Format("merged", "merge", "model", "merged", "config.json", ("transformers", "vLLM")),
    _gguf("bf16", "BF16", 16.1, "t-bf16", ("#4f2a99", "#b399f5"), default=False),
    _gguf("q8_0", "Q8_0", 8.6, "t-q8", ("#0a6b64", "#4cc9bf")),
    _gguf("q4_0", "Q4_0", 8.6, "t-q4", ("#d0741a", "#f0a255")),  # a small model is mostly tables, which stay at 8 bits
    Format("adapter", "train", "adapter", "adapter", "adapter_model.safetensors", ("transformers", "vLLM")),
    Format("tuned", "train", "tuned", "tuned", "tuned.json", ("transformers",)),
)
FORMATS = {each.name: each for each in _TABLE}
"""All formats, the more accurate first: whole models, the most exact first, then those that need their base."""
GGUF: dict[str, Gguf] = {each.name: each for each in _TABLE if isinstance(each, Gguf)}
REFERENCE: GgufName = "bf16"
"""GGUF format that is always made; the others are compared with it."""
DEFAULT_FORMATS: tuple[GgufName, ...] = tuple(each.name for each in GGUF.values() if each.default)
SMALLEST = min(GGUF.values(), key=lambda each: each.bits)
