"""Checkpoints that any number of processes can go on from, whatever the strategy: two save, one resumes, or four.

transformers' own depend on the world that wrote them: FSDP's can't be read without FSDP, its sharded ones hold no
adapter, and random states are one file a process, looked for by a process that may not have been there. Here a
checkpoint holds

    trainable.safetensors   every parameter that learns, whole, under its own name
    optimizer.pt            the optimizer's state in the order of its parameters, whole
    scheduler.pt            the schedule
    trainer_state.json      steps and what was logged

and no random state, because none is needed: the order of rows follows from seed and epoch (accelerate's seedable
sampler), and each step's randomness (dropout, NEFTune) from seed, step and process, by `SeedSteps`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gemma_ops.errors import ModelError
from gemma_ops.training.launch.sharded import place_part, trainable, whole_tensor
from gemma_ops.training.launch.strategy import check_sharded
from gemma_ops.training.launch.world import on_main, world

WEIGHTS = "trainable.safetensors"
_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"


class Portable:
    """Mixin before a transformers trainer: `class Trainer(Portable, trl.SFTTrainer)`."""

    model: Any
    optimizer: Any
    lr_scheduler: Any
    state: Any
    is_fsdp_enabled: bool

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        if self.is_fsdp_enabled:
            check_sharded(self.model)
        return prepared

    def save_model(self, output_dir: str, _internal_call: bool = False) -> None:
        """Write the parameters that learn. Every process takes part."""
        from safetensors.torch import save_file

        state = trainable(self.model)
        if on_main():
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(state, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_parameters(model or self.model, Path(resume_from_checkpoint) / WEIGHTS)

    def _load_best_model(self) -> None:
        restore_parameters(self.model, Path(self.state.best_model_checkpoint) / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        import torch

        body = self.optimizer.state_dict()
        body["state"] = {
            index: {key: whole_tensor(value) for key, value in values.items()}
            for index, values in body["state"].items()
        }
        if on_main():
            torch.save(body, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        import torch

        if checkpoint is None:
            return
        body = torch.load(Path(checkpoint) / _OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        body["state"] = {
            index: {key: place_part(value, parameters[index]) for key, value in values.items()}
            for index, values in body["state"].items()
        }
        self.optimizer.load_state_dict(body)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))

    def _save_rng_state(self, output_dir: str) -> None:
        """Do nothing: no random state is needed, see `SeedSteps`."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing: no random state was saved."""


class SeedSteps(TrainerCallback):  # type: ignore[misc]
    """Callback that seeds every step by its number, so that a resumed training draws what an unbroken one would have
    drawn."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from transformers import set_seed

        set_seed((args.seed * 1_000_003 + state.global_step * 1_009 + world().rank) % 2**32)


def restore_parameters(model: Any, file: Path) -> None:
    """Copy saved parameters into a model, sharded or not. Raises ModelError unless they are exactly those that
    learn."""
    import torch
    from safetensors import safe_open

    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with safe_open(file, framework="pt") as saved, torch.no_grad():
        names = set(saved.keys())
        if names != set(learning):
            other = sorted(names ^ set(learning))
            raise ModelError(
                f"the checkpoint {file.parent} is of another model: {len(other)} parameters differ, the first: "
                f"{other[0]}",
                "make the step again: --redo train",
            )
        for name, parameter in learning.items():
            parameter.copy_(place_part(saved.get_tensor(name), parameter))
