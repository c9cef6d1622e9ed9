"""The trainers that are compared. Each is one file with the settings its own documentation shows; what it does
differently from that is said in its `choices`, which stand in every result. Free of torch: a file's `train` imports.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_ops.bench.training.bench_rows import BenchRow
    from gemma_ops.bench.training.bench_spec import BenchSpec
    from gemma_ops.bench.training.measure import Watch


@dataclass
class ArmTask:
    """The task of an arm in its process."""

    spec: BenchSpec
    arm: str
    rows: list[BenchRow]
    folder: Path | None
    """Folder of the checkpoint, where there is one; otherwise `load` makes the model in memory."""
    tokenizer: Path
    """A folder with a tokenizer."""
    scratch: Path
    watch: Watch

    def dataset(self) -> Any:
        """Return the rows as `datasets.Dataset` with `input_ids` and `labels`."""
        from gemma_ops.data.arrow import from_rows

        return from_rows([{"input_ids": row.input_ids, "labels": row.labels} for row in self.rows])

    def make(self, *, ours: bool = False) -> Any:
        """Build the model in memory, for sizes that are not saved: as transformers and bitsandbytes would load it, with
        experts in bf16 and the per-layer table on the device; or as gemma-ops does.
        """
        from gemma_ops.bench.training import bench_shapes
        from gemma_ops.modeling import made_up

        spec = self.spec
        text = bench_shapes.text_config(spec.size, spec.layers)
        held: dict[str, Any] = {"experts": spec.weights, "ple": "host" if spec.device == "cuda" else "device"}
        return made_up.build_made_up(
            text, weights=spec.weights, device=spec.device, seed=spec.seed, **(held if ours else {})
        )


Train = Callable[[ArmTask], dict[str, Any]]
"""Function that trains, and returns the settings worth recording."""


@dataclass(frozen=True)
class Arm:
    """One trainer."""

    name: str
    what: str
    choices: str
    """Source of its settings, and where they depart from it."""
    module: str
    packages: tuple[str, ...] = ()
    """Packages that must be installed."""
    exact: bool = True
    """Whether its gradients are compared in float32 before anything is timed."""
    on_cpu: bool = True
    from_folder: bool = False
    """Whether it loads a checkpoint only, so that no true size runs without one."""

    def missing(self) -> str | None:
        """Return the first package that is not installed."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), None)

    def train(self, task: ArmTask) -> dict[str, Any]:
        run: Train = importlib.import_module(f"gemma_ops.bench.training.arms.{self.module}").train_arm
        return run(task)


_STOCK = (
    "TRL's SFT guide with PEFT: the model in bfloat16 (its own default is float32, slower and larger), LoRA on "
    "the same seven linears as every arm, SFTConfig's defaults (gradient checkpointing, fused AdamW, chunked head); "
    "rows come tokenized, with labels, so that the same tokens carry loss"
)
ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("trl", "TRL + PEFT, rows padded", f"{_STOCK}; random order, the default; --micro-batch rows at a time",
            "trl"),
        Arm(
            "trl-packed", "TRL + PEFT, packing=True",
            f"{_STOCK}; best-fit packing, one row at a time because TRL flattens a batch into one square of attention",
            "trl",
        ),
        Arm(
            "trl-packed-nogc", "the same without checkpointing",
            f"{_STOCK}; packed, gradient_checkpointing=False where it fits: TRL tuned by someone who knows it", "trl",
        ),
        Arm("gemma-ops", "gemma-ops train", "the shipped defaults; micro_tokens and checkpointing from the plan",
            "ours"),
        Arm(
            "unsloth", "Unsloth",
            "its Gemma notebooks: FastModel, its own checkpointing, lora_dropout 0, packing left off as they have it",
            "unsloth", packages=("unsloth",), exact=False, on_cpu=False, from_folder=True,
        ),
        Arm(
            "axolotl", "axolotl",
            "its examples/gemma4: sample packing, Liger norms and GLU, cut cross-entropy, hybrid attention, "
            "checkpointing",
            "axolotl", packages=("axolotl",), exact=False, on_cpu=False, from_folder=True,
        ),
    )
}  # fmt: skip
REFERENCE = "trl"
"""Name of the arm that losses, gradients and ratios are compared with."""
