"""The strategies by which processes share a model, as arguments of transformers' trainers, and the proof that they
really do.

Three things go silently wrong in this stack. On a CPU without `use_cpu`, two processes train twice, each alone, into
one folder. On a CPU, accelerate 1.15 ignores FSDP and trains with DDP (`state.py` leaves MULTI_CPU out of the list of
types that may shard), so a rehearsal rehearses something else; `shard_on_cpu` puts that right. And 4-bit weights stored
as uint8 are left whole on every process. What `check` and `check_sharded` see must be what was asked for.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.config import LaunchConfig, TrainConfig
from gemma_ops.errors import MachineError
from gemma_ops.training.launch.sharded import is_sharded
from gemma_ops.training.launch.world import world

REFUSED = {
    "fsdp": "launch.strategy says how the model is shared",
    "fsdp_config": "launch.strategy says how the model is shared",
    "deepspeed": "launch.strategy=fsdp does what ZeRO-3 does, whose saved adapters are empty",
    "ddp_backend": "it follows from machine.device",
    "use_cpu": "it follows from machine.device",
    "average_tokens_across_devices": "without it, the result depends on the number of processes",
    "accelerator_config": "the order of rows must not depend on the number of processes",
}
"""Keys of `train.trl` that are decided here, and why."""


def arguments(launch: LaunchConfig, settings: TrainConfig, model: Any, device: str) -> dict[str, Any]:
    """Return keyword arguments for an `SFTConfig` or its like, besides those of one process; `device` is `cpu` or
    `cuda…`.

    On one process there are none.
    """
    size = world().size
    if size == 1:
        return {}
    found: dict[str, Any] = {
        "ddp_backend": "gloo" if device == "cpu" else "nccl",
        "ddp_broadcast_buffers": False,  # none changes in training
        "average_tokens_across_devices": True,
    }
    if launch.strategy == "fsdp":
        found["fsdp"] = True
        found["fsdp_config"] = {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": _layers(model),
            "state_dict_type": "FULL_STATE_DICT",  # SHARDED_STATE_DICT: the trainer's `save_model` writes nothing
            "reshard_after_forward": True,
        }
    elif "ddp_find_unused_parameters" not in settings.trl:
        # Rows without images leave a tower's adapters without a gradient, which DDP would wait for.
        found["ddp_find_unused_parameters"] = settings.lora.towers
    return found


def _layers(model: Any) -> list[str]:
    """Return the classes of the layers that are sharded one by one. The model's own list names layers of towers it may
    not have."""
    wanted = set(model._no_split_modules or ())
    return sorted(wanted & {type(module).__name__ for module in model.modules()})


def check_strategy(trainer: Any, launch: LaunchConfig) -> None:
    """Compare a trainer with what was asked for, before its first step.

    Raises MachineError when its processes would train independently, or would not shard.
    """
    size, seen = world().size, trainer.accelerator.num_processes
    kind = str(trainer.accelerator.distributed_type).rpartition(".")[2]
    if seen != size or (size > 1 and kind == "NO"):  # it may count them all, and wrap the model all the same for none
        raise MachineError(
            f"{size} processes were started, and the trainer would let each train by itself, into one folder",
            "see `gemma-ops doctor`; --set launch.engine=local trains in one process",
        )
    if size > 1 and (launch.strategy == "fsdp") != (kind == "FSDP"):
        means = "every process would hold the whole model" if launch.strategy == "fsdp" else "nobody asked for it"
        raise MachineError(
            f"launch.strategy is {launch.strategy}, and the trainer's is {kind}: {means}",
            "use launch.strategy=ddp, or the version of accelerate in constraints.txt",
        )


def check_sharded(model: Any) -> None:
    """Refuse a model of which FSDP left more than a small rest whole on every process. Raises MachineError."""
    whole = {name: p.numel() * p.element_size() for name, p in model.named_parameters() if not is_sharded(p)}
    every = sum(p.numel() * p.element_size() for p in model.parameters())
    if sum(whole.values()) > 0.01 * every:
        largest = max(whole, key=lambda name: whole[name])
        raise MachineError(
            f"FSDP left {len(whole)} parameters whole on every process, {sum(whole.values()) / every:.0%} of the "
            f"model, the largest: {largest}",
            "use launch.strategy=ddp; 4-bit weights are sharded when they are stored in the model's own number type",
        )


def shard_on_cpu() -> None:
    """Let accelerate shard with FSDP2 on CPUs too, so that the same path can be rehearsed and tested without GPUs.

    accelerate decides by the type of the process group, before FSDP2 itself is asked, which runs on gloo. Its results
    equal DDP's up to rounding (`tests/training/test_launch_same.py`). Whether it took effect is checked by `check`.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    if getattr(AcceleratorState, "shards_on_cpu", False):
        return
    decide = AcceleratorState.__init__

    def decided(self: Any, mixed_precision: str | None = None, *args: Any, **kwargs: Any) -> None:
        first = AcceleratorState._shared_state == {}
        decide(self, mixed_precision, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if first and plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = decided
    AcceleratorState.shards_on_cpu = True
