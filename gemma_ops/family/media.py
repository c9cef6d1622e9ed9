"""What an image or a sound costs in tokens: the arithmetic of Gemma 4's processors, free of torch.

An image is scaled to the largest size whose patches fit a budget of soft tokens, keeping its proportions; a sound gives
one soft token per 40 ms. Tests compare every count with `processing_gemma4.py`, `processing_gemma4_unified.py`,
`image_processing_pil_gemma4.py` and the feature extractors of transformers 5.23.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemma_ops.errors import ModelError

Kind = Literal["image", "audio"]
RATE = 16_000
"""Samples per second of every sound the family hears."""
LONGEST = 30 * RATE
"""Samples of the longest sound: the encoder's 750 tokens. The published processor cuts what is longer without a
word."""
BUDGETS = (70, 140, 280, 560, 1120)
"""Numbers of soft tokens that an image may be given."""
TYPES = {"image": 1, "audio": 3}
"""`mm_token_type_ids` of soft tokens (2 is video)."""
TOKENS = {"image": ("<|image>", "<|image|>", "<image|>"), "audio": ("<|audio>", "<|audio|>", "<audio|>")}
"""Tokens of each kind of media: begin, soft token, end. The template renders the middle one once."""
KINDS = {
    "image": frozenset({"png", "jpg", "webp", "bmp", "gif", "tiff"}),
    "audio": frozenset({"wav", "flac", "ogg", "mp3"}),
}
"""File endings of stored media, by kind."""
OTHER = ("<|video|>",)
"""Tokens of media that is not trained on."""


@dataclass(frozen=True)
class Pictures:
    """The arithmetic by which images become patches and soft tokens."""

    patch: int = 16
    """Pixels along one side of a patch."""
    pool: int = 3
    """Patches along one side of a soft token."""
    budget: int = 280
    """Most soft tokens of an image (`max_soft_tokens`)."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width in pixels that an image is scaled to."""
        side = self.patch * self.pool
        factor = math.sqrt(self.budget * side**2 / (height * width))
        rows, columns = math.floor(factor * height / side), math.floor(factor * width / side)
        if rows == 0:
            rows, columns = 1, min(width // height, self.budget)
        elif columns == 0:
            rows, columns = min(height // width, self.budget), 1
        return rows * side, columns * side

    def tokens(self, height: int, width: int) -> int:
        """Return the soft tokens of an image."""
        rows, columns = self.size(height, width)
        return rows * columns // (self.patch * self.pool) ** 2


@dataclass(frozen=True)
class Sounds:
    """The arithmetic by which sounds become spectrogram frames and soft tokens: the conformer of E2B and E4B halves
    time twice."""

    frame: int = 320
    """Samples in a spectrogram frame."""
    hop: int = 160
    """Samples from the start of one frame to the next."""

    def tokens(self, samples: int) -> int:
        """Soft tokens of a sound of so many samples at 16 kHz; 0 where not one whole frame fits."""
        frames = (samples + self.frame // 2 - (self.frame + 1)) // self.hop + 1
        return math.ceil(math.ceil(frames / 2) / 2) if frames > 0 else 0


@dataclass(frozen=True)
class Waves:
    """The arithmetic of the 12B's sounds: each stretch of the waveform is a soft token, the last one padded with
    silence."""

    stretch: int = 640

    def tokens(self, samples: int) -> int:
        """Soft tokens of a sound of so many samples at 16 kHz."""
        return math.ceil(samples / self.stretch)


@dataclass(frozen=True)
class Senses:
    """Media that a checkpoint takes besides text, and what they cost in tokens."""

    image: Pictures | None = None
    audio: Sounds | Waves | None = None
    unified: bool = False
    """Whether the checkpoint is of the encoder-free class of the 12B."""
    ids: tuple[tuple[str, int], ...] = ()
    """Token ids of `TOKENS` in the model's configuration."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return `image` and `audio`, as far as the checkpoint takes them."""
        return tuple(kind for kind in ("image", "audio") if getattr(self, kind) is not None)

    def tokens(self, part: dict[str, Any]) -> int:
        """Soft tokens of an image part (`height`, `width`) or an audio part (`samples`)."""
        if part["type"] == "image":
            return self.image.tokens(part["height"], part["width"]) if self.image else 0
        return self.audio.tokens(part["samples"]) if self.audio else 0

    @staticmethod
    def read(folder: Path) -> Senses:
        """Read `config.json` and `processor_config.json` (or the older `preprocessor_config.json`) of a checkpoint
        folder.

        What the processor's file leaves out is taken from the model's configuration and the published defaults. Raises
        ModelError for a processor of another sampling rate or an unknown budget.
        """
        config = _json(folder / "config.json")
        unified = "unified" in str(config.get("model_type"))
        processor = _json(folder / "processor_config.json")
        older = _json(folder / "preprocessor_config.json")
        image = audio = None
        if (vision := config.get("vision_config")) is not None:
            image = _pictures(processor.get("image_processor") or older, vision, folder)
        if config.get("audio_config") is not None:
            audio = _sounds(processor.get("feature_extractor") or older, folder, unified=unified)
        return Senses(image, audio, unified, tuple(_ids(config).items()))


def _pictures(processor: dict[str, Any], vision: dict[str, Any], folder: Path) -> Pictures:
    budget = processor.get("max_soft_tokens", 280)
    if budget not in BUDGETS:
        raise ModelError(
            f"{folder} gives an image {budget} soft tokens",
            f"set max_soft_tokens to one of {', '.join(map(str, BUDGETS))}",
        )
    return Pictures(
        processor.get("patch_size", vision.get("patch_size", 16)),
        processor.get("pooling_kernel_size", vision.get("pooling_kernel_size", 3)),
        budget,
    )


def _sounds(processor: dict[str, Any], folder: Path, *, unified: bool) -> Sounds | Waves:
    rate = processor.get("sampling_rate", RATE)
    if rate != RATE:
        raise ModelError(f"{folder} hears at {rate} Hz; Gemma 4 does at {RATE}", "use the processor of the checkpoint")
    if unified:
        return Waves(processor.get("audio_samples_per_token", 640))
    return Sounds(
        round(RATE * processor.get("frame_length_ms", 20.0) / 1000),
        round(RATE * processor.get("hop_length_ms", 10.0) / 1000),
    )


def _ids(config: dict[str, Any]) -> dict[str, int]:
    """Return ids by token; the defaults are those of the configuration class."""
    keys = {
        "<|image>": ("boi_token_id", 255_999), "<|image|>": ("image_token_id", 258_880),
        "<image|>": ("eoi_token_id", 258_882),
        "<|audio>": ("boa_token_id", 256_000), "<|audio|>": ("audio_token_id", 258_881),
        "<audio|>": ("eoa_token_index", 258_883),
    }  # fmt: skip
    return {token: int(config.get(key) or default) for token, (key, default) in keys.items()}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body
