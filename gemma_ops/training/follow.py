"""Records of a training besides its weights: a line for every step, sampled answers, checkpoints known to be whole."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gemma_ops.config import TrainConfig
from gemma_ops.data import chat, example, parts
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import OpsError
from gemma_ops.modeling.generate import answer_prompts
from gemma_ops.runs import journal
from gemma_ops.training.launch.world import on_main
from gemma_ops.training.media_sft import Media

_MARK = "complete"
_LEFT_OUT = {"total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}
_LEFT_OUT |= {"num_tokens", "eval_num_tokens"}  # TRL counts them from zero after a resume
_LEFT_OUT |= {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "step_time"}

_FOLLOWED = (
    "loss", "grad_norm", "learning_rate", "eval_loss", "mean_token_accuracy", "reward", "eval_reward",
    "rewards/margins",
    "rewards/accuracies", "accuracy", "kl",
)  # fmt: skip


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; half-written ones are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / _MARK).exists():
            whole.append(path)
        elif on_main():
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def write_record(state: Any, path: Path) -> None:
    """Write what the trainer logged, a line per step or validation, without timings: the same run gives the same
    bytes."""
    with path.open("w", encoding="utf-8") as file:
        for entry in state.log_history:
            kept = {key: value for key, value in entry.items() if key not in _LEFT_OUT}
            if kept.keys() - {"step", "epoch"}:
                file.write(json.dumps({"step": kept.pop("step"), **dict(sorted(kept.items()))}) + "\n")


def validated(state: Any, settings: TrainConfig) -> dict[str, Any] | None:
    """Return the validation of the last step, where there was one and no earlier adapter was taken instead."""
    if settings.early_stop:
        return None
    return next(
        (
            entry
            for entry in reversed(state.log_history)
            if any(key.startswith("eval_") for key in entry) and entry["step"] == state.global_step
        ),
        None,
    )


def prompts(path: Path, tokenizer: Any, count: int, manner: Manner, media: Media | None = None) -> list[dict[str, Any]]:
    """Return the first `count` validation rows as prompts up to their last answer, for `Follow` to have answered."""
    found: list[dict[str, Any]] = []
    for row in example.read_rows(path):
        if len(found) >= count:
            break
        if not any(turn["role"] == "assistant" for messages in example.conversation_rows(row) for turn in messages):
            continue
        before, reference = example.last_exchange(row)
        spoken = [turn for messages in example.conversation_rows(row) for turn in messages]
        asked = chat.prompt(tokenizer, before, row.get("tools"), **manner.of(spoken))
        found.append(
            {
                "id": row["id"],
                "ids": asked.ids,
                "seen": media.perceiver.see(parts.media_of(before), media.folder, asked.types()) if media else None,
                "prompt": parts.shown_parts(before[-1]["content"]) if before else "",
                "reference": reference,
            }
        )
    return found


class Follow(TrainerCallback):  # type: ignore[misc]
    """Callback that marks whole checkpoints, reports progress, samples answers at each validation, and stops on a loss
    that is not a number."""

    def __init__(self, samples: Path, tokenizer: Any, prompts: list[dict[str, Any]]) -> None:
        self.samples = samples
        self.tokenizer = tokenizer
        self.prompts = prompts
        self._began = time.time()
        self._first = 0
        self._tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Delete samples made after the checkpoint that this run resumes from."""
        self._first = state.global_step
        self._began = time.time()
        if on_main() and self.samples.exists():
            lines = [
                line
                for line in self.samples.read_text(encoding="utf-8").splitlines(keepends=True)
                if line.endswith("\n")
            ]
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            self.samples.write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        loss = logs.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise OpsError(
                f"the loss is {loss} at step {state.global_step}",
                "lower train.learning_rate, and look at the rows with `gemma-ops data check`",
            )
        if loss is None and not any(key.startswith("eval_") for key in logs):
            return
        done = state.global_step - self._first
        rate = (time.time() - self._began) / max(done, 1)
        if not self._tokens:
            self._tokens = float(logs.get("num_tokens", 0.0))
            self._token_time = time.time()
        fields: dict[str, Any] = {key: logs[key] for key in _FOLLOWED if key in logs}
        spent = time.time() - self._token_time
        if loss is not None and done > 1 and spent > 0:
            fields["tokens_per_second"] = round((float(logs.get("num_tokens", 0.0)) - self._tokens) / spent, 1)
        journal.record(
            step=state.global_step,
            steps=state.max_steps,
            eta_seconds=round(rate * (state.max_steps - state.global_step), 1),
            **fields,
        )

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.prompts:
            return
        answers = list(  # by all processes: a sharded model answers only together
            answer_prompts(
                model,
                self.tokenizer,
                [item["ids"] for item in self.prompts],
                seen=[item["seen"] for item in self.prompts],
                max_new_tokens=128,
                batch_size=8,
            )
        )
        if not on_main():
            return
        with self.samples.open("a", encoding="utf-8") as file:
            for item, reply in zip(self.prompts, answers, strict=True):
                line = {
                    "step": state.global_step,
                    "id": item["id"],
                    "prompt": item["prompt"],
                    "reference": item["reference"],
                    "answer": reply.text,
                    "end": reply.end,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if on_main():
            (folder / _MARK).touch()
