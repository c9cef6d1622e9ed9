"""The arm Unsloth, after its published Gemma notebooks (unsloth.ai/docs, github.com/unslothai/notebooks)."""

from __future__ import annotations

import importlib
from typing import Any

from gemma_ops.bench.training.arms import ArmTask


def train_arm(task: ArmTask) -> dict[str, Any]:
    """Train as its notebooks do: rows padded, its own offloaded checkpointing, 16-bit or 4-bit weights.

    It must be imported before transformers, which `child` sees to.
    """
    unsloth = importlib.import_module("unsloth")
    import trl

    spec, rows = task.spec, task.dataset().select_columns(["input_ids", "labels"])
    model, _ = unsloth.FastModel.from_pretrained(
        model_name=str(task.folder),
        max_seq_length=spec.row_length,
        load_in_4bit=spec.weights == "nf4",
        full_finetuning=False,
    )
    task.watch.model_loaded(model)
    model = unsloth.FastModel.get_peft_model(
        model,
        finetune_vision_layers=False,
        finetune_language_layers=True,
        finetune_attention_modules=True,
        finetune_mlp_modules=True,
        r=spec.rank,
        lora_alpha=2 * spec.rank,
        lora_dropout=0,
        bias="none",
        random_state=spec.seed,
        use_gradient_checkpointing="unsloth",
    )
    import transformers

    trainer = trl.SFTTrainer(
        model=model,
        processing_class=transformers.AutoTokenizer.from_pretrained(task.tokenizer),
        train_dataset=rows,
        callbacks=[task.watch],
        args=trl.SFTConfig(
            output_dir=str(task.scratch),
            max_steps=task.watch.all_steps,
            per_device_train_batch_size=spec.micro_batch,
            gradient_accumulation_steps=spec.batch // spec.micro_batch,
            max_length=spec.row_length,
            learning_rate=1e-4,
            max_grad_norm=spec.max_grad_norm,
            bf16=True,
            optim="adamw_8bit",
            seed=spec.seed,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return {"version": unsloth.__version__, "rows_per_forward": spec.micro_batch, "checkpointing": "unsloth"}
