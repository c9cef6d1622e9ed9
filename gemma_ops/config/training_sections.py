"""Sections of a training: its low-rank adapter, the teacher of a distillation, and the kernels it runs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.config.section import ConfigSection, Share


class LoraConfig(ConfigSection):
    """The low-rank adapter."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank r of the matrices A and B."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with `rslora`)."""
    dropout: Share = 0.0
    """Dropout before A."""
    rslora: bool = False
    """Rank-stabilised scaling."""
    dora: bool = False
    """Learn magnitude and direction apart (DoRA)."""
    init: Literal["default", "pissa", "olora", "orthogonal"] = "default"
    """How A and B start: zero update, or from the base weights' principal parts (PiSSA, OLoRA)."""
    plus: Annotated[float, Field(ge=1)] = 1.0
    """LoRA+: B learns this many times as fast as A."""
    targets: str = "default"
    """`default` (attention and MLP of the language model) or one regular expression over module names."""
    experts: bool = False
    """Adapt the experts of a mixture too (26B-A4B): many more parameters."""
    towers: bool = False
    """Adapt the vision and audio towers too; they are frozen otherwise."""


class DistillConfig(ConfigSection):
    """The teacher of a distillation."""

    teacher: str | None = None
    """A larger Gemma 4 with the same vocabulary: a local folder (with a `/` in it) or a Hub id."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens both distributions before they are compared."""
    mix: Share = 0.5
    """Share of the loss that is the teacher's distribution; the rest is the row's own answer."""


class KernelsConfig(ConfigSection):
    """Faster forms of the same mathematics: results agree up to rounding."""

    attention: Literal["documents", "sdpa"] = "documents"
    """`documents` computes each packed row and window by itself; `sdpa` computes the whole square and masks it."""
    head: Literal["fused", "trl"] = "fused"
    """`fused` forms the gradient of labelled tokens in the forward pass; `trl` recomputes the logits in the backward
    pass."""
    lora: Literal["fused", "peft"] = "fused"
    """`fused` shares one input among the adapters that read it and keeps no copies."""
    norms: Literal["fused", "eager"] = "fused"
    """`fused` keeps a norm's input and one number a token for the backward pass."""
    compile: Literal["auto", "off", "regions"] = "auto"
    """`regions` compiles what lies between a layer's products (fused norms, rotary embedding, GeGLU, softmax); `auto`
    does so on a GPU, where each of them would be many kernels, and not on a CPU, where compiling takes longer than it
    saves."""
    graphs: Literal["auto", "off"] = "auto"
    """`auto` records the layers of a pass as CUDA graphs, where adapters learn on one GPU, and replays them: a small
    model's kernels take longer to launch than to run."""

    @property
    def records(self) -> bool:
        """Return whether passes may be captured as CUDA graphs: `graphs`, and kernels that launch the same whatever the
        documents."""
        return (self.graphs, self.attention, self.lora, self.norms) == ("auto", "documents", "fused", "fused")
