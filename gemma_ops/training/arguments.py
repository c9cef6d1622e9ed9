"""Conversion of our settings to TRL's, whatever the method: every key we set, and the check of those passed through
`train.trl`."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from gemma_ops.config import TrainConfig
from gemma_ops.errors import ConfigError
from gemma_ops.training.launch.strategy import REFUSED

_WHY = {
    "gradient_checkpointing_kwargs": "reentrant checkpointing corrupts gradients of layers that share keys and values",
    "use_liger_kernel": "its Gemma 4 support is partial and TRL's fused head excludes it",
    "fp16": "Gemma 4's activations overflow in float16",
    "report_to": "runs are mirrored to MLflow by gemma-ops itself",
    "assistant_only_loss": "the loss mask comes from gemma-ops' own chat template",
    "completion_only_loss": "the loss mask comes from gemma-ops' own chat template",
    "chat_template_path": "rows become tokens by gemma-ops' own chat template",
    "chat_template_kwargs": "rows become tokens by gemma-ops' own chat template",
    "model_init_kwargs": "the model is loaded, and checked, by gemma-ops",
    "attn_implementation": "a string there stops the audio tower from loading",
    **dict.fromkeys(
        (
            "dataset_num_proc",
            "pad_to_multiple_of",
            "padding_free",
            "truncation_mode",
            "precompute_ref_batch_size",
            "auto_find_batch_size",
            "train_sampling_strategy",
            "group_by_length",
        ),
        "gemma-ops makes the table of rows, and lays them into forward passes",
    ),
    "sync_ref_model": "the reference is the model as it was at the start",
    "log_completions": "answers are sampled into samples.jsonl",
    **REFUSED,
}


_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def autocasts(settings: TrainConfig) -> bool:
    """True if the forward pass runs under autocast to bfloat16.

    Fused adapters compute in the base's own type; autocast would keep a second copy of every weight it meets.
    """
    return settings.weights == "bf16" and (settings.tune == "full" or settings.kernels.lora == "peft")


def common(
    settings: TrainConfig, out: Path, *, has_valid: bool, rate: float, device: str, best: str = "eval_loss"
) -> dict[str, Any]:
    """Return the keys of transformers' `TrainingArguments` that follow from our settings, for every method.

    `rate` is the peak learning rate; `best` what an early stop watches, better when lower if it is a loss. Raises
    ConfigError for what this machine or these rows can't do.
    """
    every = settings.eval_every
    keep_best = settings.early_stop is not None
    if keep_best and not has_valid:
        raise ConfigError(
            "train.early_stop needs validation rows, and there are none",
            "raise data.valid_share, or leave train.early_stop out",
        )
    if device == "cpu" and settings.optimizer != "adamw":
        raise ConfigError(
            f"train.optimizer {settings.optimizer} needs a GPU", "leave it out: on a CPU memory is not the limit"
        )
    return {
        "output_dir": str(out),
        # A batch of our loader is a whole optimizer step.
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": rate,
        "lr_scheduler_type": {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[
            settings.schedule
        ],
        "warmup_steps": settings.warmup_share,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": autocasts(settings),
        "fp16": False,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,  # `kernels` recomputes, layer by layer
        "eval_strategy": "steps" if every and has_valid else "no",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every if keep_best and every else settings.save_every,
        "load_best_model_at_end": keep_best,
        "metric_for_best_model": best if keep_best else None,
        "greater_is_better": not best.endswith("loss") if keep_best else None,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "dataloader_pin_memory": device != "cpu",
        "report_to": [],
        "neftune_noise_alpha": None,  # `neftune` scales its noise by the length of a document, not of a pass
        "disable_tqdm": True,
    }


def training_arguments(config: Any, settings: TrainConfig, owned: dict[str, Any], known: set[str] | None = None) -> Any:
    """Return an instance of a TRL configuration class from the keys we own and those of `train.trl`.

    `known` are the keys that may be passed through, by default all of the class. Raises ConfigError for a key that TRL
    doesn't know or that gemma-ops sets itself.
    """
    import trl

    known = known or {field.name for field in dataclasses.fields(config) if field.init}
    problems = []
    for key in settings.trl:
        if key in owned or key in _WHY:
            reason = _WHY.get(key, "it follows from the train section")
            problems.append(f"train.trl.{key} is set by gemma-ops: {reason}")
        elif key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            problems.append(
                f"train.trl.{key} is unknown to {config.__name__} of TRL {trl.__version__}"
                + (f", did you mean {close[0]}?" if close else "")
            )
    if problems:
        raise ConfigError("\n  ".join(problems), "take those keys out of train.trl")
    return config(**{"optim": _OPTIMIZERS[settings.optimizer], "save_total_limit": 2, **settings.trl}, **owned)


def sft_arguments(
    settings: TrainConfig, out: Path, *, has_valid: bool, rate: float, device: str, shared: dict[str, Any] | None = None
) -> Any:
    """Return the `SFTConfig` of a run. `rate` is the peak learning rate, `shared` what several processes need. Raises
    ConfigError as `common` and `build` do."""
    import trl

    owned = common(settings, out, has_valid=has_valid, rate=rate, device=device) | {
        "max_length": settings.max_length,
        "packing": False,  # `steps` packs
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": True,
    }
    return training_arguments(trl.SFTConfig, settings, owned | (shared or {}))
