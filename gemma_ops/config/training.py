"""How an adapter is trained, folded in and quantized."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gemma_ops.config.section import Section, Share


class LoraConfig(Section):
    """The low-rank adapter."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank r of the two factors."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with `rslora`)."""
    dropout: Share = 0.0
    """Dropout before the first factor."""
    rslora: bool = False
    """Rank-stabilised scaling."""
    targets: str = "default"
    """`default` (attention and MLP of the language model) or one regular expression over module names."""


class TrainConfig(Section):
    """Supervised fine-tuning with LoRA (`weights: bf16`) or QLoRA (`weights: nf4`)."""

    method: Literal["sft"] = "sft"
    """Training method."""
    weights: Literal["bf16", "nf4", "fp32"] = "bf16"
    """How the frozen base is held: this one key turns LoRA into QLoRA."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows; ignored when `max_steps` is given."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps in all."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Rows per optimizer step; with `packing`, packed rows."""
    micro_batch: Annotated[int, Field(ge=1)] = 4
    """Rows per forward pass; must divide `batch`. The result is the same up to rounding. With `packing` it is 1."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Longest row in tokens; longer ones are cut at the end and counted."""
    packing: bool = False
    """Put several rows into one of `max_length` tokens, isolated from each other."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; null takes the size's default from the family table."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps spent warming up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient norm is clipped to this."""
    checkpointing: bool = False
    """Recompute activations in the backward pass (never reentrant): slower, less memory."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between validations; null validates at the end only."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Validation prompts answered at each validation, into `samples.jsonl`."""
    early_stop: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many validations without a better loss."""
    save_every: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints a killed run resumes from; with `early_stop`, every validation makes one."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of initialisation, order and dropout."""
    trl: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Any other `SFTConfig` key, checked against the installed TRL."""

    @model_validator(mode="after")
    def _batches(self) -> TrainConfig:
        if self.batch % self.micro_batch:
            raise ValueError(f"train.micro_batch ({self.micro_batch}) must divide train.batch ({self.batch})")
        if self.early_stop and not self.eval_every:
            raise ValueError("train.early_stop needs train.eval_every")
        return self


class MergeConfig(Section):
    """Folding the adapter into the bf16 base."""

    canary_prompts: Annotated[int, Field(ge=1)] = 4
    """Validation prompts on which the merged model must differ from the base."""


class QuantizeConfig(Section):
    """Files for serving."""

    formats: tuple[Literal["bf16", "q8_0", "q4_0"], ...] = ("q8_0", "q4_0")
    """GGUF types to write; `bf16` is written anyway, to compare with."""
    fidelity_rows: Annotated[int, Field(ge=1)] = 24
    """Validation rows on which each file is compared with bf16 in llama.cpp."""
