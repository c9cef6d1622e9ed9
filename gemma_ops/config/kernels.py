"""Which exact replacements of the stack's operations a training uses; each can be switched off to measure it."""

from __future__ import annotations

from typing import Literal

from gemma_ops.config.section import ConfigSection


class KernelsConfig(ConfigSection):
    """Faster forms of the same mathematics: results agree up to rounding."""

    attention: Literal["documents", "sdpa"] = "documents"
    """`documents` computes each packed row and window by itself; `sdpa` computes the whole square and masks it."""
    head: Literal["fused", "trl"] = "fused"
    """`fused` forms the gradient of labelled tokens in the forward pass; `trl` recomputes the logits in the backward pass."""
    lora: Literal["fused", "peft"] = "fused"
    """`fused` shares one input among the adapters that read it and keeps no copies."""
    norms: Literal["fused", "eager"] = "fused"
    """`fused` keeps a norm's input and one number a token for the backward pass."""
    compile: Literal["auto", "off", "regions"] = "auto"
    """`regions` compiles what lies between a layer's products (fused norms, rotary embedding, GeGLU, softmax); `auto` does so
    on a GPU, where each of them would be many kernels, and not on a CPU, where compiling takes longer than it saves."""
    graphs: Literal["auto", "off"] = "auto"
    """`auto` records the layers of a pass as CUDA graphs, where adapters learn on one GPU, and replays them: a small model's
    kernels take longer to launch than to run."""

    @property
    def records(self) -> bool:
        """Whether passes may be recorded: `graphs`, and kernels that launch the same whatever the documents."""
        return (self.graphs, self.attention, self.lora, self.norms) == ("auto", "documents", "fused", "fused")
