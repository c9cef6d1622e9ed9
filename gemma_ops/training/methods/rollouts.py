"""The common part of GRPO and RLOO: prompts as our own tokens, answers drawn by the model, validation without drawing.

TRL draws the answers of a whole step at once and computes their loss in parts; advantage and loss are its own.
Validation answers each prompt once, greedily, as evaluation does, so its reward depends on no draw and moves no random
state.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.utils import RepeatSampler

from gemma_ops.config import TrainConfig
from gemma_ops.errors import ConfigError
from gemma_ops.modeling.generate import answer_prompts, stop_ids
from gemma_ops.training.course import TrainingRows
from gemma_ops.training.methods import scoring
from gemma_ops.training.methods.reference import starts_at_base, untouched
from gemma_ops.training.methods.rewards import Rewards
from gemma_ops.training.plus import lora_plus_groups


def owned(settings: TrainConfig, *, world: int) -> dict[str, Any]:
    """Return the keys of `GRPOConfig` and `RLOOConfig` that follow from our settings, on so many processes."""
    reinforce = settings.reinforce
    answers, each = settings.batch * reinforce.generations, settings.micro_batch * world
    if answers % each:
        raise ConfigError(
            f"{world} processes with train.micro_batch {settings.micro_batch} can't share the {answers} answers "
            f"of a step",
            "lower train.micro_batch, or take another number of processes",
        )
    return {
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": answers // each,
        "num_generations": reinforce.generations,
        "num_generations_eval": 1,
        "max_completion_length": reinforce.max_new_tokens,
        "temperature": reinforce.temperature,
        "beta": reinforce.beta,
        "epsilon": reinforce.clip,
        "reward_weights": [term.weight for term in reinforce.rewards],
        "mask_truncated_completions": reinforce.cut == "mask",
        "disable_dropout": True,
        "remove_unused_columns": False,
        "shuffle_dataset": True,
    }


class Answering:
    """Mixin before a TRL trainer that draws answers."""

    settings: TrainConfig
    rewards: Rewards

    def prepare(
        self: Any, make: Any, settings: TrainConfig, rewards: Rewards, model: Any, kwargs: dict[str, Any]
    ) -> None:
        """Build the trainer by `make`, without a second adapter, and let it score tokens our way."""
        self.settings, self.rewards = settings, rewards
        if len(kwargs["train_dataset"]) < settings.batch:
            raise ConfigError(
                f"train.batch is {settings.batch}, and there are {len(kwargs['train_dataset'])} rows",
                "lower train.batch, or give more rows",
            )
        if settings.reinforce.beta and not starts_at_base(model):
            raise ConfigError(
                f"train.reinforce.beta needs the model as it was at the start, and train.lora.init "
                f"{settings.lora.init} leaves none",
                "set train.lora.init to default, or train.reinforce.beta to 0",
            )
        with untouched(model):
            make(model=model, reward_funcs=rewards.functions(), **kwargs)
        temperature, outputs = settings.reinforce.temperature, ("log_probs", "entropy")
        scoring.install_scoring(self.model, settings, temperature=temperature, outputs=outputs)

    def _tokenize_prompts(self, prompts: Any) -> Any:
        return prompts, None, {}

    def _get_train_sampler(self: Any, dataset: Any = None) -> Any:
        return _Order(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            seed=self.args.seed,
        )

    def evaluation_loop(self: Any, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Measure the mean reward of greedy answers to the validation prompts, and of each metric in it."""
        rows = self.eval_dataset
        reinforce = self.settings.reinforce
        model = self.accelerator.unwrap_model(self.model)
        given = answer_prompts(
            model,
            self.rewards.tokenizer,
            rows["prompt"],
            max_new_tokens=reinforce.max_new_tokens,
            batch_size=self.settings.micro_batch * 4,
        )
        totals: list[float] = []
        parts: dict[str, list[float]] = {}
        for reply, reference, row in zip(given, rows["reference"], rows["row"], strict=True):
            total, each = self.rewards.total(reply.text, reply.end == "length", reference, row)
            totals.append(total)
            for key, value in each.items():
                parts.setdefault(key, []).append(value)
        prefix = kwargs.get("metric_key_prefix", "eval")
        metrics = {f"{prefix}_reward": sum(totals) / len(totals)}
        metrics |= {f"{prefix}_rewards/{key}/mean": sum(values) / len(values) for key, values in parts.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(rows))

    def floating_point_ops(self, inputs: Any) -> float:
        """Return 0: transformers' formula knows neither shared layers nor windows."""
        return 0.0

    def create_optimizer(self: Any, model: Any = None) -> Any:
        """Create the optimizer of `train.optimizer`; with LoRA+ LoRA B learns faster."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        return lora_plus_groups(optimizer, model or self.model, self.settings.lora.plus)


class _Order(RepeatSampler):  # type: ignore[misc]
    """Sampler with TRL's order of rows, drawn anew from the seed and the epoch: its own goes on from the last epoch,
    and a run resumed in the second one would begin with the first one's order."""

    def set_epoch(self, epoch: int) -> None:
        """Order the rows as they come in this epoch."""
        self.generator = torch.Generator().manual_seed((self.seed or 0) * 1_000_003 + epoch)


def rewards_for(rows: TrainingRows, given: dict[str, Any]) -> Rewards:
    """Return the rewards of a training, which read each row's own reference."""
    references = [*rows.train["reference"], *rows.valid["reference"]]
    tokenizer = given["processing_class"].backend_tokenizer
    return Rewards(given["settings"].reinforce, references, tokenizer, set(stop_ids(given["model"])))


def processes() -> int:
    """Return the number of processes that train together."""
    from accelerate import PartialState

    return int(PartialState().num_processes)
