"""From our settings to TRL's: every key we set, and the check of those passed through `train.trl`."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from gemma_ops.config import TrainConfig
from gemma_ops.errors import ConfigError
from gemma_ops.training.launch.strategy import REFUSED, split

_WHY = {
    "gradient_checkpointing_kwargs": "reentrant checkpointing corrupts gradients of layers that share keys and values",
    "use_liger_kernel": "its Gemma 4 support is partial and TRL's fused head excludes it",
    "fp16": "Gemma 4's activations overflow in float16",
    "report_to": "runs are mirrored to MLflow by gemma-ops itself",
    "assistant_only_loss": "the loss mask comes from gemma-ops' own chat template",
    "completion_only_loss": "the loss mask comes from gemma-ops' own chat template",
    "model_init_kwargs": "the model is loaded, and checked, by gemma-ops",
    "attn_implementation": "a string there stops the audio tower from loading",
    **REFUSED,
}


def sft_arguments(
    settings: TrainConfig, out: Path, *, has_valid: bool, rate: float, device: str, shared: dict[str, Any] | None = None
) -> Any:
    """The `SFTConfig` of a run. `rate` is the peak learning rate, `shared` what several processes need.

    Raises ConfigError for a key in `train.trl` that TRL doesn't know or that gemma-ops sets itself.
    """
    import trl

    micro, accumulated = split(settings, 1 if settings.packing else settings.micro_batch)
    every = settings.eval_every
    keep_best = settings.early_stop is not None
    if keep_best and not has_valid:
        raise ConfigError(
            "train.early_stop needs validation rows, and there are none",
            "raise data.valid_share, or leave train.early_stop out",
        )
    owned: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": rate,
        "lr_scheduler_type": {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[
            settings.schedule
        ],
        "warmup_steps": settings.warmup_share,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.weights != "fp32",
        "fp16": False,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": settings.checkpointing == "all",
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if settings.checkpointing == "all" else None,
        "max_length": settings.max_length,
        "packing": settings.packing,
        "packing_strategy": "bfd",
        "eval_packing": False,
        "eval_strategy": "steps" if every and has_valid else "no",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every if keep_best and every else settings.save_every,
        "load_best_model_at_end": keep_best,
        "metric_for_best_model": "eval_loss" if keep_best else None,
        "greater_is_better": False if keep_best else None,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "dataloader_pin_memory": device != "cpu",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": True,
        **(shared or {}),
    }
    known = {field.name for field in dataclasses.fields(trl.SFTConfig) if field.init}
    problems = []
    for key in settings.trl:
        if key in owned or key in _WHY:
            reason = _WHY.get(key, "it follows from the train section")
            problems.append(f"train.trl.{key} is set by gemma-ops: {reason}")
        elif key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1)
            problems.append(
                f"train.trl.{key} is unknown to TRL {trl.__version__}"
                + (f", did you mean {close[0]}?" if close else "")
            )
    if problems:
        raise ConfigError("\n  ".join(problems), "take those keys out of train.trl")
    return trl.SFTConfig(**{"optim": "adamw_torch_fused", "save_total_limit": 2, **settings.trl}, **owned)
