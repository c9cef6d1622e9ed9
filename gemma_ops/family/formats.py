"""The formats of weights, in one table: how each is stored, where its files lie, which engines run it, how reports show
it.

Everything that lists formats takes them from here: the keys of the configuration, targets, GGUF files, registered
versions, reports, and what `doctor` and the rendered jobs count. To add a GGUF format: its name in `GgufName`, the type
of its tensors in `TensorType`, `BITS` and `BLOCKS` if that is new (then also its values in `ggml/lattices.py` and its
bytes in `ggml/packing.py`), and its row in `_TABLE`.

Sizes of GGML's types: ggml-common.h. Blocks of 32 weights share a float16 scale; in those of 256, groups of 16 or 32
have integers that scale the block's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GgufName = Literal["bf16", "q8_0", "q6_k", "q5_k_m", "q5_k", "q5_0", "q4_k_m", "q4_k", "q4_0", "iq4_xs", "mixed"]
"""GGUF formats that the step `quantize` writes, as the configuration spells them."""
PackedName = Literal["w8a8", "fp8", "w4a16", "nvfp4"]
"""Formats of compressed-tensors that the step `quantize` writes, for vLLM."""
EdgeName = Literal["litertlm_wi8", "litertlm_wi4"]
"""Formats of LiteRT-LM that the step `quantize` writes, for phones."""
QuantizedName = Literal[GgufName, PackedName, EdgeName]
"""Formats that the step `quantize` writes."""
VersionFormat = Literal["adapter", "merged", QuantizedName]
"""Formats that a registered version may carry (`register.artifacts`); `adapter` also stands for the changed weights of
a full fine-tune."""
ProjectorType = Literal["bf16", "f16", "f32"]
"""Types of the matrices of an mmproj file, as the configuration spells them."""
TensorType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "IQ4_XS"]
"""GGML types of the tensors that we write."""
Engine = Literal["transformers", "llama.cpp", "vLLM", "LiteRT-LM"]

BITS: dict[TensorType, float] = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q5_0": 5.5, "Q4_K": 4.5,
    "Q4_0": 4.5, "IQ4_XS": 4.25,
}  # fmt: skip
"""Bits per weight of each tensor type, scales included."""
BLOCKS: dict[TensorType, int] = {
    "F32": 1, "F16": 1, "BF16": 1, "Q8_0": 32, "Q6_K": 256, "Q5_K": 256, "Q5_0": 32, "Q4_K": 256, "Q4_0": 32,
    "IQ4_XS": 256,
}  # fmt: skip
"""Weights that are stored together, by tensor type: rows are whole blocks."""
INSTEAD: dict[TensorType, TensorType] = {
    "Q6_K": "Q8_0", "Q5_K": "Q8_0", "Q4_K": "Q5_0", "IQ4_XS": "Q4_0", "Q8_0": "BF16", "Q5_0": "BF16", "Q4_0": "BF16"
}  # fmt: skip
"""Type of tensors whose rows are no whole blocks of the type that the format asks for."""
QUANTIZED_TYPES = tuple(kind for kind, bits in BITS.items() if bits < 16)
TABLE_TYPE: TensorType = "Q8_0"
"""Tensor type of embeddings, per-layer tables and per-layer projections, where no other is asked for."""
QAT_TYPE: TensorType = "Q4_0"
"""Type whose lattice Google's QAT checkpoints were trained on."""
TableName = Literal["q8_0", "q6_k"]
"""Formats of embeddings and per-layer tables, as the configuration spells them."""
DEFAULT_TABLES: TableName = "q8_0"
CacheName = Literal["f16", "q8_0"]
"""Types of keys and values in llama.cpp's KV cache, as the configuration spells them."""
CACHE_BITS: dict[CacheName, float] = {"f16": BITS["F16"], "q8_0": BITS["Q8_0"]}
FINE_CACHE: CacheName = "q8_0"
COARSE_CACHES = ("q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Types that llama.cpp offers besides, and that answers don't survive: with q4_0 those of E2B were garbage, and 31B's
likeliest token another one at 14 % of the positions; with q8_0 nothing was lost for E2B (gemmaclaw issue 314)."""
GGUF_FILE = "model.gguf"
"""Name of a GGUF file in the folder of its format."""
PACKED_FILE = "model.safetensors"
"""Name of the file with the weights of a checkpoint of compressed-tensors: one, whatever its size."""
EDGE_FILE = "model.litertlm"
"""Name of a file for LiteRT-LM in the folder of its format."""
WEIGHT_ENDINGS = (".safetensors", ".gguf", ".litertlm")
"""Endings of files that hold weights."""
PROJECTOR_TYPES: dict[ProjectorType, tuple[TensorType, str]] = {
    "bf16": ("BF16", "MOSTLY_BF16"), "f16": ("F16", "MOSTLY_F16"), "f32": ("F32", "ALL_F32")
}  # fmt: skip
"""Tensor type of an mmproj file's matrices, and the name of the file type in llama.cpp (gguf-py, `LlamaFileType`)."""
ADAPTER_FILE = "adapter.gguf"
"""Name of an adapter's GGUF file, in the folder of the step `merge`."""
PROJECTOR_FILE = "mmproj.gguf"
"""Name of the file with a model's vision and audio towers, as llama.cpp takes it beside any GGUF file of the model."""
PROJECTOR_MADE, PROJECTOR_SHELF = "mmproj", "quantized/mmproj"
"""Folder of that file below the step `quantize`, and in a registered version."""


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
class QuantizedFormat(Format):
    """A format that the step `quantize` makes, and that reports show in a colour of its own."""

    bits: float
    """Bits per weight of attention, MLP and experts, on average."""
    css: str
    """CSS class of the format's colour in reports."""
    colours: tuple[str, str]
    """CSS colours on a light and on a dark page."""

    @property
    def answers_in(self) -> Engine:
        """Return the engine that answers in an evaluation."""
        return self.engines[0]


@dataclass(frozen=True)
class Packed(QuantizedFormat):
    """A checkpoint with weights as compressed-tensors stores them."""

    scheme: str
    """Scheme, as compressed-tensors names its presets (`PRESET_SCHEMES`)."""
    kinds: tuple[str, ...]
    """Types of safetensors in which the bulk of the weights lies."""
    calibrated: bool
    """Whether making it needs rows: its activations have scales that are measured."""
    lattice: TensorType | None = None
    """GGML type whose values the weights may take too, so that what was fitted for it can be stored here."""
    reads_as: Literal["weights", "activations"] = "activations"
    """Whether it is the weights alone that are rounded: then any engine computes the same with the weights decoded."""

    @property
    def answers_in(self) -> Engine:
        """Return transformers: with the weights decoded, or with compressed-tensors in the tool."""
        return "transformers"


@dataclass(frozen=True)
class Edge(QuantizedFormat):
    """A file that LiteRT-LM runs on phones and laptops."""

    recipe: str
    """Recipe of ai-edge-quantizer, or ours (`edge_bundle`)."""


@dataclass(frozen=True)
class Gguf(QuantizedFormat):
    """One type of GGUF file."""

    name: GgufName
    tensor: TensorType
    """Tensor type of most of the file's weights."""
    careful: TensorType | None
    """Tensor type of values and of the MLP's last matrix in half of the layers, as in llama.cpp's files named `_M`;
    None where they are stored as the others are."""
    file_type: str
    """Name of the file type in llama.cpp (gguf-py, `LlamaFileType`)."""
    most_bits: float
    """Upper bound of the bits per weight of a whole file, for estimates of disk space."""
    mixed: bool
    """Whether each tensor has the type that suits it, within `quantize.budget` or `quantize.bits`. `tensor` is then
    what estimates count with."""
    default: bool
    """Whether the format is made, evaluated and registered where a configuration names none."""

    @property
    def types(self) -> tuple[TensorType, ...]:
        """Return the tensor types of attention, MLP and experts: the format's own, and those that stand in for them
        where rows are no whole blocks."""
        if self.mixed:
            return QUANTIZED_TYPES
        found = [self.tensor, *([self.careful] if self.careful else [])]
        for each in found:
            if (other := INSTEAD.get(each)) in QUANTIZED_TYPES and other not in found:
                found.append(other)
        return tuple(found)


_CAREFUL_SHARE = 1 / 6
"""Share of the weights in a file's `careful` type: of an MLP's three matrices one, in half of the layers."""


def _gguf(
    name: GgufName,
    tensor: TensorType,
    file_type: str,
    css: str,
    colours: tuple[str, str],
    *,
    careful: TensorType | None = None,
    mixed: bool = False,
    most_bits: float = 8.6,  # a small model is mostly tables, which stay at 8 bits
    default: bool = False,
) -> Gguf:
    bits = BITS[tensor] + (_CAREFUL_SHARE * (BITS[careful] - BITS[tensor]) if careful else 0.0)
    return Gguf(
        name, "quantize", name, f"quantized/{name}", GGUF_FILE, ("llama.cpp",), bits, css, colours,
        tensor, careful, file_type, most_bits, mixed, default,
    )  # fmt: skip


def _packed(
    name: PackedName, bits: float, css: str, colours: tuple[str, str], scheme: str, kinds: tuple[str, ...], *,
    calibrated: bool = False, lattice: TensorType | None = None,
) -> Packed:  # fmt: skip
    engines: tuple[Engine, ...] = ("transformers", "vLLM") if lattice else ("vLLM",)
    reads: Literal["weights", "activations"] = "weights" if lattice else "activations"
    return Packed(
        name, "quantize", name, f"quantized/{name}", PACKED_FILE, engines, bits, css, colours,
        scheme, kinds, calibrated, lattice, reads,
    )  # fmt: skip


def _edge(name: EdgeName, bits: float, css: str, colours: tuple[str, str], recipe: str) -> Edge:
    return Edge(
        name, "quantize", name, f"quantized/{name}", EDGE_FILE, ("LiteRT-LM",), bits, css, colours, recipe
    )  # fmt: skip


_TABLE = (
    Format("merged", "merge", "model", "merged", "config.json", ("transformers", "vLLM")),
    _gguf("bf16", "BF16", "MOSTLY_BF16", "t-bf16", ("#4f2a99", "#b399f5"), most_bits=16.1),
    _gguf("q8_0", "Q8_0", "MOSTLY_Q8_0", "t-q8", ("#0a6b64", "#4cc9bf"), default=True),
    _gguf("q6_k", "Q6_K", "MOSTLY_Q6_K", "t-q6", ("#2f7d32", "#7fd083")),
    _gguf("q5_k_m", "Q5_K", "MOSTLY_Q5_K_M", "t-q5km", ("#6b7a12", "#c6d45c"), careful="Q6_K"),
    _gguf("q5_k", "Q5_K", "MOSTLY_Q5_K_S", "t-q5k", ("#8a8f00", "#dede4a")),
    _gguf("q5_0", "Q5_0", "MOSTLY_Q5_0", "t-q5", ("#9a7400", "#e8c54a")),
    _gguf("q4_k_m", "Q4_K", "MOSTLY_Q4_K_M", "t-q4km", ("#b0413e", "#f28b82"), careful="Q6_K"),
    _gguf("q4_k", "Q4_K", "MOSTLY_Q4_K_S", "t-q4k", ("#96305c", "#ea86b4")),
    _gguf("q4_0", "Q4_0", "MOSTLY_Q4_0", "t-q4", ("#d0741a", "#f0a255"), default=True),
    _gguf("iq4_xs", "IQ4_XS", "MOSTLY_IQ4_XS", "t-iq4", ("#7a4a2b", "#cf9f7c")),
    _gguf("mixed", "Q4_K", "MOSTLY_Q4_K_S", "t-mixed", ("#0e86b8", "#63c8f2"), mixed=True),
    _packed("w8a8", 8.0, "t-w8a8", ("#35648a", "#84b6dc"), "W8A8", ("I8",)),
    _packed("fp8", 8.0, "t-fp8", ("#3f6d74", "#8cc3cb"), "FP8_DYNAMIC", ("F8_E4M3",)),
    _packed("w4a16", 4.5, "t-w4a16", ("#a3324f", "#f08ba3"), "W4A16", ("I32",), lattice="Q4_0"),
    _packed("nvfp4", 4.5, "t-nvfp4", ("#6d4c8f", "#bb9be0"), "NVFP4", ("U8",), calibrated=True),
    _edge("litertlm_wi8", 8.0, "t-litert8", ("#5a7d1f", "#a9cf62"), "weight_only_wi8_afp32"),
    _edge("litertlm_wi4", 4.5, "t-litert4", ("#8a5a00", "#e0ac4c"), "gemma4_mixed48_b32_tables8"),
    Format("adapter", "train", "adapter", "adapter", "adapter_model.safetensors", ("transformers", "vLLM")),
    Format("tuned", "train", "tuned", "tuned", "tuned.json", ("transformers",)),
)
FORMATS = {each.name: each for each in _TABLE}
"""All formats, the more accurate first: whole models, the most exact first, then those that need their base."""
QUANTIZED: dict[str, QuantizedFormat] = {each.name: each for each in _TABLE if isinstance(each, QuantizedFormat)}
"""Formats that the step `quantize` makes."""
PACKED: dict[str, Packed] = {each.name: each for each in _TABLE if isinstance(each, Packed)}
EDGE: dict[str, Edge] = {each.name: each for each in _TABLE if isinstance(each, Edge)}
GGUF: dict[str, Gguf] = {each.name: each for each in _TABLE if isinstance(each, Gguf)}
REFERENCE: GgufName = "bf16"
"""GGUF format that is always made; the others are compared with it."""
DEFAULT_FORMATS: tuple[GgufName, ...] = tuple(each.name for each in GGUF.values() if each.default)
SMALLEST = min((GGUF[name] for name in DEFAULT_FORMATS), key=lambda each: each.bits)
"""Smallest of the formats that are made where nothing else is asked for."""
