"""Tensors that are sharded over several processes: gathered whole, and taken apart."""

from __future__ import annotations

from typing import Any

from gemma_ops.training.launch.world import on_main


def is_sharded(tensor: Any) -> bool:
    """True if a tensor is spread over the processes."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole_tensor(value: Any) -> Any:
    """Return a sharded tensor's full value, gathered from all processes, which all must ask; anything else as it is."""
    return value.full_tensor() if is_sharded(value) else value


def place_part(value: Any, like: Any) -> Any:
    """Return this process's part of a full tensor, spread as `like` is. What has another shape, as a count of steps,
    stays whole."""
    import torch

    if not is_sharded(like) or not torch.is_tensor(value) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Each process cuts its own part out of the file: nothing is sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def full_state(model: Any) -> dict[str, Any] | None:
    """Return what `save_pretrained(state_dict=…)` of a sharded model needs: its trainable parameters, whole, by name.

    None for a model that is whole already. Empty but on the main process; all processes take part.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return None
    return trainable(model)


def trainable(model: Any) -> dict[str, Any]:
    """Return every parameter that learns by name, whole and on the CPU; empty except on the main process. All processes
    take part.

    A tied head is the embedding under another name: it is held, and saved, once.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            value = whole_tensor(parameter)
            if on_main():
                found[name] = value.detach().cpu().contiguous()
    return found
