"""The arm axolotl, after its examples/gemma4 and its documentation of tokenized data sets and plugins
(docs.axolotl.ai)."""

from __future__ import annotations

import importlib
import json
from typing import Any

from gemma_ops.bench.training.arms import ArmTask

_TASK: list[ArmTask] = []
"""Task of this process: axolotl makes its plugins itself, from a class's name."""


def configuration(task: ArmTask) -> dict[str, Any]:
    """Return the YAML of its example for a dense size, with our rows, steps and LoRA."""
    spec = task.spec
    four = spec.weights == "nf4"
    return {
        "base_model": str(task.folder),
        "plugins": [
            "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
            "axolotl.integrations.liger.LigerPlugin",
            f"{__name__}.plugin_class",
        ],
        "liger_layer_norm": True,
        "liger_rope": False,
        "liger_rms_norm": True,
        "liger_glu_activation": True,
        "strict": False,
        "datasets": [{"path": str(task.scratch / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(task.scratch / "prepared"),
        "output_dir": str(task.scratch / "out"),
        "sequence_len": spec.row_length,
        "sample_packing": True,
        "load_in_4bit": four,
        "adapter": "qlora" if four else "lora",
        "lora_r": spec.rank,
        "lora_alpha": 2 * spec.rank,
        "lora_dropout": 0,
        "lora_target_modules": r"model.(language_model.)?layers.[\d]+.(mlp|self_attn).(up|down|gate|q|k|v|o)_proj",
        "bnb_config_kwargs": {"bnb_4bit_use_double_quant": True},
        "micro_batch_size": 1,
        "gradient_accumulation_steps": packed_rows([len(row.input_ids) for row in task.rows], spec.row_length),
        "max_steps": task.watch.all_steps,
        "optimizer": "adamw_torch_8bit",
        "learning_rate": 1e-4,
        "lr_scheduler": "cosine",
        "max_grad_norm": spec.max_grad_norm,
        "bf16": "auto",
        "tf32": True,
        "gradient_checkpointing": True,
        "gemma4_hybrid_attn_impl": True,
        "attn_implementation": "flash_attention_2",
        "logging_steps": 1,
        "save_strategy": "no",
        "val_set_size": 0,
        "seed": spec.seed,
        "special_tokens": {"pad_token": "<pad>"},
    }


def train_arm(task: ArmTask) -> dict[str, Any]:
    """Train through `axolotl.cli.train.do_train`; our clock is added as a plugin."""
    _TASK[:] = [task]
    with (task.scratch / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in task.rows:
            mask = [1] * len(row.input_ids)
            line = {"input_ids": row.input_ids, "attention_mask": mask, "labels": row.labels}
            file.write(json.dumps(line) + "\n")
    settings = configuration(task)
    path = task.scratch / "axolotl.json"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    cli = importlib.import_module("axolotl.cli.train")
    config = importlib.import_module("axolotl.cli.config").load_cfg(str(path))
    cli.do_train(config, importlib.import_module("axolotl.cli.args").TrainerCliArgs())
    return {"version": importlib.import_module("axolotl").__version__, "packing": True, "checkpointing": True}


def packed_rows(lengths: list[int], row_length: int) -> int:
    """Return how many rows first-fit-decreasing, which its sampler uses, makes of a step: they must all be in it."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((index for index, left in enumerate(room) if left >= length), None)
        if place is None:
            room.append(row_length - length)
        else:
            room[place] -= length
    return len(room)


def __getattr__(name: str) -> Any:
    """Return `plugin_class`, a subclass of axolotl's base plugin, which can be made only where axolotl is installed."""
    if name != "plugin_class":
        raise AttributeError(name)
    base: Any = importlib.import_module("axolotl.integrations.base").BasePlugin

    class Clock(base):  # type: ignore[misc, valid-type]
        """Plugin that notes when the model is loaded, and gives the trainer our callback."""

        def post_model_build(self, cfg: Any, model: Any) -> None:
            _TASK[0].watch.model_loaded(model)

        def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
            return [_TASK[0].watch]

    return Clock
