"""The vision and audio towers of four sizes, and the projections that replace them in the 12B.

They are counted, and left out when a model is loaded for text. Defaults are those of the configuration classes of
transformers 5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Vision:
    """The image encoder of the four sizes that have one (`Gemma4VisionConfig`)."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    patch: int
    positions: int

    def parameters(self, text_hidden: int) -> int:
        """Return the parameters of the encoder, of the patch and position embeddings, and of the projection into the
        language model."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.ffn + 4 * self.hidden + 2 * self.head_dim
        embedder = 3 * self.patch**2 * self.hidden + 2 * self.positions * self.hidden
        return self.layers * layer + embedder + self.hidden * text_hidden


@dataclass(frozen=True)
class Audio:
    """The conformer of E2B and E4B (`Gemma4AudioConfig`)."""

    hidden: int
    layers: int
    heads: int
    kernel: int
    channels: tuple[int, int]
    output: int

    def parameters(self, text_hidden: int) -> int:
        """Return the parameters of the subsampling convolutions, conformer layers, output projection and projection
        into the language model."""
        h, (first, second) = self.hidden, self.channels
        subsample = 9 * first + first + 9 * first * second + second + (first // 4) * second * h
        attention = 5 * h * h + h // self.heads
        feed_forward = 2 * (8 * h * h + 2 * h)
        convolution = 3 * h * h + self.kernel * h + 2 * h
        layer = attention + feed_forward + convolution + 3 * h
        return subsample + self.layers * layer + self.output * (h + 1) + self.output * text_hidden


@dataclass(frozen=True)
class PatchVision:
    """The 12B's encoder-free image path: raw 48 x 48 patches through one projection (`Gemma4UnifiedVisionConfig`)."""

    patch: int
    width: int
    positions: int

    def parameters(self, text_hidden: int) -> int:
        pixels = 3 * self.patch**2
        norms = 2 * pixels + 4 * self.width
        return pixels * self.width + self.width + norms + 2 * self.positions * self.width + self.width * text_hidden


@dataclass(frozen=True)
class FrameAudio:
    """The 12B's encoder-free audio path: 40 ms of raw waveform through one projection (`Gemma4UnifiedAudioConfig`)."""

    samples: int

    def parameters(self, text_hidden: int) -> int:
        return self.samples * text_hidden


def read_vision(config: dict[str, Any] | None, *, unified: bool) -> Vision | PatchVision | None:
    if config is None:
        return None
    if unified:
        return PatchVision(
            patch=config.get("patch_size", 16) * config.get("pooling_kernel_size", 3),
            width=config.get("mm_embed_dim", 3840),
            positions=config.get("mm_posemb_size", 1120),
        )
    return Vision(
        hidden=config.get("hidden_size", 768),
        ffn=config.get("intermediate_size", 3072),
        layers=config.get("num_hidden_layers", 16),
        heads=config.get("num_attention_heads", 12),
        kv_heads=config.get("num_key_value_heads", 12),
        head_dim=config.get("head_dim", 64),
        patch=config.get("patch_size", 16),
        positions=config.get("position_embedding_size", 10_240),
    )


def read_audio(config: dict[str, Any] | None, *, unified: bool) -> Audio | FrameAudio | None:
    if config is None:
        return None
    if unified:
        return FrameAudio(samples=config.get("audio_embed_dim", 640))
    first, second = config.get("subsampling_conv_channels", (128, 32))
    return Audio(
        hidden=config.get("hidden_size", 1024),
        layers=config.get("num_hidden_layers", 12),
        heads=config.get("num_attention_heads", 8),
        kernel=config.get("conv_kernel_size", 5),
        channels=(first, second),
        output=config.get("output_proj_dims", 1536),
    )
