"""The sections of training, merging and quantizing: how a model is trained, an adapter folded in, and the result
quantized.

A setting that says nothing to the training method is refused instead of being forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Literal

from pydantic import ByteSize, Field, model_validator

from gemma_ops.config.methods import (
    PREFERENCE,
    READERS,
    REINFORCE,
    SUPERVISED,
    UNPAIRED,
    Method,
    PreferenceConfig,
    ReinforceConfig,
)
from gemma_ops.config.section import ConfigSection
from gemma_ops.config.training_sections import DistillConfig, KernelsConfig, LoraConfig
from gemma_ops.family.formats import DEFAULT_FORMATS, DEFAULT_TABLES, ProjectorType, QuantizedName, TableName

Thinking = Literal["off", "on", "mixed"]
"""Whether a model is asked to think: never, always, or where a row holds a thought."""


class TrainConfig(ConfigSection):
    """Fine-tuning with LoRA (`weights: bf16`), QLoRA (`weights: nf4`) or of all parameters (`tune: full`)."""

    method: Method = "sft"
    """Training method."""
    tune: Literal["lora", "full"] = "lora"
    """What learns: an adapter, or every parameter of the language model."""
    weights: Literal["bf16", "nf4", "fp32"] = "bf16"
    """How the base is held: this one key turns LoRA into QLoRA."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""
    distill: DistillConfig = DistillConfig()
    """The teacher of `method: distill`."""
    kernels: KernelsConfig = KernelsConfig()
    """Faster forms of the same mathematics."""
    preference: PreferenceConfig = PreferenceConfig()
    """Learning from answers that somebody compared or judged."""
    reinforce: ReinforceConfig = ReinforceConfig()
    """Learning from rewards that are computed."""
    thinking: Thinking = "off"
    """`on` asks for thoughts, `mixed` in the rows that hold one; recorded with what is trained, so that it is evaluated
    and served in the same mode."""
    loss_on: Literal["all", "last"] = "all"
    """Which answers of a conversation carry loss."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows; ignored when `max_steps` is given."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps in all."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Rows per optimizer step; `grpo` and `rloo` draw `reinforce.generations` answers to each."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens per optimizer step instead of a number of rows; needs `packing`."""
    micro_batch: Annotated[int, Field(ge=1)] = 4
    """Rows (answers for `grpo` and `rloo`) per forward pass without `packing`; must divide `batch`. The result is the
    same up to rounding."""
    micro_tokens: Annotated[int, Field(ge=16)] | None = None
    """Tokens per forward pass with `packing`; null lets the plan decide. The result is the same up to rounding."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Longest row in tokens; longer ones are cut at the end and counted."""
    packing: bool = True
    """Compute the rows of a step end to end, isolated from each other, instead of padding them to one length."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; null takes the size's default from the family table, a tenth of it for `tune: full`, `dpo`,
    `kto`, `orpo`, `grpo` and `rloo`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps spent warming up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient norm is clipped to this."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`adamw` is fused; the 8-bit ones keep their moments in a quarter of the memory (GPU)."""
    neftune: Annotated[float, Field(gt=0)] | None = None
    """Noise added to embeddings in training (NEFTune's alpha)."""
    checkpointing: Literal["auto", "none", "mlp", "all"] | Annotated[int, Field(ge=1, strict=True)] = "auto"
    """What the backward pass recomputes to save memory (never reentrant): nothing, the MLPs, all layers, or so many
    layers; `auto` is what the plan says fits."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between validations; null validates at the end only."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Validation prompts answered at each validation, into `samples.jsonl`."""
    early_stop: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many validations without a better loss (`grpo`, `rloo`: reward)."""
    save_every: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints a killed run resumes from; with `early_stop`, every validation makes one."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of initialisation, order and dropout."""
    trl: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Any other key of the method's TRL configuration (`SFTConfig`, `DPOConfig`, …), checked against the installed
    TRL."""

    def optimizer_steps(self, rows: int, tokens: int) -> int:
        """Return how many optimizer steps a training on so many rows (of so many tokens in all) takes."""
        if self.max_steps:
            return self.max_steps
        an_epoch = ceil(tokens / self.batch_tokens) if self.batch_tokens else ceil(rows / self.batch)
        return max(1, ceil(self.epochs * max(1, an_epoch)))

    def warm_up_alone(self, rows: int, tokens: int) -> tuple[str, str] | None:
        """Return what is wrong with a training whose only step is a warm-up's first, and the ways out; None for any
        other."""
        if self.optimizer_steps(rows, tokens) > 1 or not self.warmup_share:
            return None
        what = (
            f"the training is one step long ({rows} rows, train.batch {self.batch}), and the learning rate of the "
            "warm-up's first step is zero: it would learn nothing"
        )
        return what, "lower train.batch, raise train.epochs or train.max_steps, or set train.warmup_share=0"

    @model_validator(mode="after")
    def _batches(self) -> TrainConfig:
        if not self.packing and self.batch % self.micro_batch and self.method not in REINFORCE:
            raise ValueError(f"train.micro_batch ({self.micro_batch}) must divide train.batch ({self.batch})")
        if self.batch_tokens and not self.packing:
            raise ValueError("train.batch_tokens needs train.packing")
        if self.micro_tokens and self.micro_tokens < self.max_length:
            raise ValueError(
                f"train.micro_tokens ({self.micro_tokens}) must hold a row of train.max_length ({self.max_length})"
            )
        if self.method == "distill" and not self.distill.teacher:
            raise ValueError("train.method distill needs train.distill.teacher")
        if self.tune == "full" and self.weights == "nf4":
            raise ValueError("train.tune full can't train 4-bit weights: set train.weights to bf16 or fp32")
        if self.early_stop and not self.eval_every:
            raise ValueError("train.early_stop needs train.eval_every")
        if found := list(_problems(self)):
            raise ValueError("; ".join(found))
        return self


class MergeConfig(ConfigSection):
    """Folding the adapter into the bf16 base."""

    canary_prompts: Annotated[int, Field(ge=1)] = 4
    """Validation prompts on which the merged model must differ from the base."""
    gguf_adapter: bool = False
    """Write the adapter as `adapter.gguf` too, which llama.cpp puts on any GGUF file of the base, and compare it with
    PEFT."""


class QuantizeConfig(ConfigSection):
    """Files for serving."""

    formats: tuple[QuantizedName, ...] = DEFAULT_FORMATS
    """Formats to write: GGUF types for llama.cpp (`bf16` is written anyway, to compare with); `w4a16`, `w8a8`, `fp8`,
    `nvfp4` for vLLM; `litertlm_wi8`, `litertlm_wi4` for phones. All but GGUF and `w4a16` are made by tools."""
    tables: TableName = DEFAULT_TABLES
    """Type of the embedding and of the per-layer table in formats below 8 bits. They are half of E2B: `q6_k`, as
    llama.cpp's own files have it, makes it 0.6 GiB smaller."""
    fidelity_rows: Annotated[int, Field(ge=1)] = 24
    """Validation rows on which each file is compared with bf16 in llama.cpp."""
    fit: Literal["none", "importance", "rounding", "scales"] = "none"
    """Fit formats below 8 bits to the training rows, at no more bytes. `importance`: scales searched by what columns
    are multiplied with. `rounding`: error feedback too. `scales`: scales and norms also trained to say what bf16
    says."""
    fit_rows: Annotated[int, Field(ge=1)] = 1000
    """Training rows that files are fitted to."""
    fit_steps: Annotated[int, Field(ge=1)] = 400
    """Steps of the training of scales, 8 rows each."""
    coarse: bool = False
    """Make files of fewer bits than a size was found to bear, too: of E4B those below 5 bits that are not fitted."""
    budget: Annotated[ByteSize, Field(ge=1)] | None = None
    """Bytes of the file `mixed`, such as `3.2GB`: each tensor gets the type that its effect on the answers is worth."""
    bits: Annotated[float, Field(gt=0, le=16)] | None = None
    """Bits a weight of the file `mixed`, over the whole file, instead of `budget`."""
    w4a16: Literal["own", "gptq", "rtn"] = "own"
    """How w4a16 is made: `own` codes, searched or fitted (`fit`), or `gptq` or `rtn` by llm-compressor."""
    redundant_kv: bool = False
    """Keep the keys and values that layers which share them have in Google's files, in checkpoints for vLLM, for
    engines that insist. A base that was saved without them is refused."""
    edge_context: Annotated[int, Field(ge=256)] = 4096
    """Tokens of a conversation that a `.litertlm` file has room for: its cache has this size on every device."""
    edge_graphs: str | None = None
    """Folder with float graphs of this run's base (`gemma-ops tools edge-graphs`), into which tuned tensors are laid;
    null converts the tuned model, which takes 2.4 times the memory of its float32 weights."""
    mmproj: Literal["auto", "none", ProjectorType] = "auto"
    """Type in which vision and audio towers are written for llama.cpp, as `mmproj/mmproj.gguf`. `auto` takes `bf16`
    where the prepared rows show images or sounds and `formats` names a file beside them."""

    @model_validator(mode="after")
    def _mixed(self) -> QuantizeConfig:
        given = [key for key in ("budget", "bits") if getattr(self, key) is not None]
        if "mixed" in self.formats and not given:
            raise ValueError("quantize.formats names mixed: set quantize.budget (3.2GB) or quantize.bits (4.5) for it")
        if given and "mixed" not in self.formats:
            raise ValueError(f"quantize.{given[0]} is for the file mixed: add mixed to quantize.formats")
        if len(given) > 1:
            raise ValueError("quantize.budget and quantize.bits both say how large the file mixed is: keep one")
        return self


def _problems(train: TrainConfig) -> Iterator[str]:
    """Yield what does not fit together in `train`, one line each."""
    method = train.method
    for name, section in (("preference", train.preference), ("reinforce", train.reinforce)):
        users = PREFERENCE if name == "preference" else REINFORCE
        for key, field in type(section).model_fields.items():
            if getattr(section, key) == field.get_default(call_default_factory=True):
                continue
            if method not in READERS.get(f"{name}.{key}", users):
                yield f"train.{name}.{key} says nothing to train.method {method}"
    loss = train.preference.loss
    if loss and method in ("dpo", "kto") and (loss in UNPAIRED) != (method == "kto"):
        yield f"train.preference.loss {loss} is not a loss of {method}"
    if method != "distill":
        for key, field in type(train.distill).model_fields.items():
            if getattr(train.distill, key) != field.default:
                yield f"train.distill.{key} says nothing to train.method {method}"
    if train.tune == "full" and method in (*PREFERENCE, *REINFORCE):
        yield f"train.method {method} trains adapters: leave train.tune out, or set it to lora"
    if method == "pretrain":
        for key in ("loss_on", "thinking"):
            if getattr(train, key) != type(train).model_fields[key].default:
                yield f"train.{key} says nothing to train.method pretrain: every token of a text is learned"
    if method in (*PREFERENCE, *REINFORCE):
        for key in SUPERVISED:
            if getattr(train, key) != type(train).model_fields[key].default:
                yield f"train.{key} says nothing to train.method {method}"
    if method in REINFORCE:
        if not train.reinforce.rewards:
            yield f"train.method {method} needs a reward, for example train.reinforce.rewards=[exact_match]"
        if train.micro_tokens:
            yield (
                f"train.micro_tokens says nothing to train.method {method}: its forward passes are of "
                f"train.micro_batch answers"
            )
        answers = train.batch * train.reinforce.generations
        if answers % train.micro_batch:
            yield (
                f"train.micro_batch ({train.micro_batch}) must divide the {answers} answers of a step (batch × "
                f"reinforce.generations)"
            )
        if train.lora.dropout:
            yield (
                f"train.lora.dropout would make train.method {method} learn from another model than the one that "
                f"answered"
            )
