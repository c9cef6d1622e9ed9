"""The arm TRL: stock TRL with PEFT, padded or packed, which the others are compared with."""

from __future__ import annotations

from typing import Any

from gemma_ops.bench.training.arms import ArmTask


def train_arm(task: ArmTask) -> dict[str, Any]:
    """Train as TRL's SFT guide shows it. On a GPU that runs out of memory, the padded arm is tried again with half as
    many rows at a time, as its user would.
    """
    import torch

    micro = 1 if task.arm != "trl" else task.spec.micro_batch
    while True:
        try:
            return _train(task, micro)
        except torch.cuda.OutOfMemoryError:
            if micro == 1:
                raise
        micro //= 2
        task.watch.restart()
        torch.cuda.empty_cache()


def _train(task: ArmTask, micro: int) -> dict[str, Any]:
    import transformers
    import trl

    from gemma_ops.modeling import stock

    spec, rows = task.spec, task.dataset().select_columns(["input_ids", "labels"])
    packed = task.arm != "trl"
    checkpointing = task.arm != "trl-packed-nogc"
    adapter = stock.lora(spec.rank)
    forward_passes = spec.batch // micro
    if packed:  # all rows of the step, however many packed rows they make
        forward_passes = len(trl.pack_dataset(rows, spec.row_length, "bfd"))
    arguments = trl.SFTConfig(
        output_dir=str(task.scratch),
        max_steps=task.watch.all_steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=forward_passes,
        max_length=spec.row_length,
        packing=packed,
        learning_rate=1e-4,
        bf16=spec.weights != "fp32",
        max_grad_norm=spec.max_grad_norm,
        gradient_checkpointing=checkpointing,
        use_cpu=spec.device == "cpu",
        dataloader_pin_memory=spec.device != "cpu",
        seed=spec.seed,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    model = stock.load_stock(task.folder, spec.weights, spec.device) if task.folder else task.make()
    task.watch.model_loaded(model)
    trainer = trl.SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=transformers.AutoTokenizer.from_pretrained(task.tokenizer),
        peft_config=adapter,
        callbacks=[task.watch],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return {
        "rows_per_forward": micro,
        "forward_passes": forward_passes,
        "checkpointing": checkpointing,
        "packing": packed,
        "optimizer": str(arguments.optim),
    }
