"""What a person may ask for: the frozen `RunConfig` tree.

Two kinds of settings live in different types. Everything but `MachineConfig` decides the bytes of a result and is part
of a step's fingerprint; `MachineConfig` says where and how fast it runs and never is. How a tree is read from YAML files
and `--set` stands in `configfile.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Privacy = Literal["local_only", "paid", "any"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


_LOCATION = "location"
"""Marks a key that says where something lies; what lies there enters a fingerprint by its digest."""


class Section(BaseModel):
    """A part of the tree: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result: everything but locations, whose content counts instead of their name."""
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if _LOCATION not in field.metadata:
                value = getattr(self, name)
                values[field.alias or name] = value.identity() if isinstance(value, Section) else value
        return values


class ModelConfig(Section):
    """Which Gemma 4 to start from."""

    base: str = "nano"
    """`nano` (shipped, CPU size), a local folder, or a Hub id such as `google/gemma-4-E2B-it`."""
    revision: str | None = None
    """Hub revision (a commit); resolved to a commit and recorded when not given."""


class DataConfig(Section):
    """Where the training rows come from and what is done to them."""

    path: Annotated[str | None, _LOCATION] = None
    """A file or folder: jsonl, json, csv, tsv, parquet, or a `datasets` folder saved with `save_to_disk`."""
    hub: str | None = None
    """A Hub dataset id, instead of `path`."""
    split: str = "train"
    """Which split of a Hub data set or `datasets` folder."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "gemini", "columns"] = "auto"
    """Layout of a row; `auto` decides by the keys of the first rows."""
    prompt: str | None = None
    """For `columns`: the user turn, with `{column}` placeholders."""
    completion: str | None = None
    """For `columns`: the assistant turn, with `{column}` placeholders."""
    system: str | None = None
    """A system turn put before every row that has none."""
    group_by: str | None = None
    """Column (or metadata key) whose equal values stay on one side of the split; by default each row is its own group."""
    privacy: Privacy = "local_only"
    """Privacy class of rows that don't carry one of their own; a row may only be stricter."""
    valid_share: Share = 0.05
    """Share of groups held out for validation, chosen by hash: stable when rows are appended."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many rows."""
    max_bad_share: Share = 0.0
    """Fail when a larger share of rows is unusable; the rows themselves go to `rejected.jsonl`."""
    max_line_mb: Annotated[float, Field(gt=0)] = 16.0
    """A longer line is rejected without being read into memory (MB)."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8
    """Drop rows whose 5-gram Jaccard similarity to an earlier one reaches this; null keeps them."""
    overlap: Literal["refuse", "drop", "report"] = "refuse"
    """What to do with rows that also stand in an evaluation task."""
    pii: Literal["off", "report", "mask", "refuse"] = "report"
    """What to do about personal data found by checksummed patterns."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.path and self.hub:
            raise ValueError("give data.path or data.hub, not both")
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("data.prompt and data.completion go together")
        return self


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


class GateConfig(Section):
    """One condition of the verdict."""

    metric: str
    """A metric of the task, for example `exact_match`."""
    task: str | None = None
    """Which task; may be left out when there is one."""
    target: str = "tuned"
    """Who must pass."""
    test: Literal["superior", "noninferior", "at_least"]
    """`superior`: better than `versus` by more than `margin`; `noninferior`: not worse by `margin`; `at_least`: the
    metric itself reaches `margin`. Each is decided on an interval, so it can end inconclusive."""
    versus: str | None = None
    """The other target, for the two paired tests."""
    margin: float = 0.0
    """In the metric's own units."""

    @model_validator(mode="after")
    def _rival(self) -> GateConfig:
        if (self.versus is None) != (self.test == "at_least"):
            raise ValueError("superior and noninferior need `versus`; at_least takes none")
        return self


class EvaluateConfig(Section):
    """Who answers which questions, and what must hold."""

    tasks: Annotated[tuple[str, ...], _LOCATION] = ()
    """Folders under `eval/` (or paths) holding a `task.yaml`."""
    targets: tuple[str, ...] = ("base", "tuned", "q8_0", "q4_0")
    """`base`, `tuned`, or a quantized format of this run."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Answer only this many questions of each task, the first by hash of their id."""
    gates: tuple[GateConfig, ...] = ()
    """Conditions of the verdict."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of every interval, and 1 - alpha of the gates together (Holm)."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of the bootstraps."""


class RegisterConfig(Section):
    """The version in MLflow's registry."""

    name: Name | None = None
    """Registered model name; null takes the run's name."""
    description: str = ""
    """One paragraph for the model card."""
    artifacts: tuple[Literal["adapter", "merged", "bf16", "q8_0", "q4_0"], ...] = ("adapter", "q8_0", "q4_0")
    """What the version carries."""


class MachineConfig(Section):
    """Where it runs. Never part of a fingerprint: changing it redoes nothing."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when there is one."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    mlflow: str | None = "mlflow"
    """A folder (one database and the artifacts in it), an `http(s)://` or database URI, or null for no tracking."""
    experiment: str = "gemma-ops"
    """MLflow experiment."""
    eval_batch: Annotated[int, Field(ge=1)] = 16
    """Prompts answered at a time."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Threads for the CPU; null takes all cores."""


class RunConfig(Section):
    """One run, from data to a registered version."""

    name: Name = "run"
    """The run's folder under `machine.runs`; by default the first file's stem."""
    recipe: str = "lora"
    """A recipe shipped here, or a path to one of your own."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    merge: MergeConfig = MergeConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: Annotated[RegisterConfig, Field(alias="register")] = RegisterConfig()
    machine: MachineConfig = MachineConfig()

    def registration(self) -> RegisterConfig:
        """The `register` section with its name filled in."""
        return self.register_.model_copy(update={"name": self.register_.name or self.name})
