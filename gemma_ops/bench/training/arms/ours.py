"""The arm gemma-ops, through the functions that `gemma-ops train` calls."""

from __future__ import annotations

from typing import Any

from gemma_ops.bench.training.arms import ArmTask
from gemma_ops.config import KernelsConfig, LoraConfig, TrainConfig


def our_settings(task: ArmTask) -> TrainConfig:
    """Return the train section of a run with the shipped defaults."""
    spec = task.spec
    return TrainConfig(
        weights=spec.weights,
        lora=LoraConfig(rank=spec.rank, alpha=2 * spec.rank),
        max_steps=task.watch.all_steps,
        batch=spec.batch,
        micro_tokens=spec.micro_tokens,
        checkpointing=spec.checkpointing,  # type: ignore[arg-type]
        kernels=KernelsConfig(graphs=spec.graphs),  # type: ignore[arg-type]
        max_length=spec.longest,
        learning_rate=1e-4,
        max_grad_norm=spec.max_grad_norm,
        save_every=10**6,
        seed=spec.seed,
    )


def train_arm(task: ArmTask) -> dict[str, Any]:
    """Train as `gemma-ops train` does."""
    from gemma_ops.bench.training import bench_shapes
    from gemma_ops.data.row_tokens import Manner
    from gemma_ops.family import Shape
    from gemma_ops.modeling.load import load_model
    from gemma_ops.training import sft
    from gemma_ops.training.arguments import sft_arguments
    from gemma_ops.training.course import TrainingRows
    from gemma_ops.training.settle import settle

    spec, configured = task.spec, our_settings(task)
    rows = TrainingRows(task.dataset(), [], 0, Manner())
    shape = Shape.from_config(bench_shapes.text_config(spec.size, spec.layers))
    configured = settle(configured, shape, [rows.train], spec.device, ple="auto")
    model = load_model(task.folder, weights=spec.weights, device=spec.device) if task.folder else task.make(ours=True)
    task.watch.model_loaded(model)
    model = sft.prepare_model(model, configured)
    arguments = sft_arguments(configured, task.scratch, has_valid=False, rate=1e-4, device=spec.device)
    trainer = sft.make_sft_trainer(model, arguments, rows, task.tokenizer, [task.watch], configured)
    trainer.train()
    return {
        "micro_tokens": trainer.layout.micro_tokens,
        "checkpointing": configured.checkpointing,
        "kernels": configured.kernels.model_dump(),
    }
