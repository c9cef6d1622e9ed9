"""What the tests of `gemma_ops.modeling` share: tiny checkpoints made once, tokens, and small measurements."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.helpers import tiny_models

IDS = torch.arange(110, 150)[None]
KINDS = tiny_models.KINDS
_TEMPORARY = tempfile.TemporaryDirectory(prefix="tiny")


@cache
def tiny(kind: Any) -> Path:
    """The folder of a small random checkpoint of that kind, made once for all tests; don't write into it."""
    return tiny_models.save(kind, Path(_TEMPORARY.name) / kind)


def copied(kind: Any, folder: Path) -> Path:
    """A copy of it that a test may damage."""
    return shutil.copytree(tiny(kind), folder)


def whole(kind: Any, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own load of it, towers and all: the reference."""
    import transformers

    folder = tiny(kind)
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    return cls.from_pretrained(folder, dtype=dtype).eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def in_fp32(kind: Any, folder: Path) -> Path:
    """The same checkpoint with its numbers stored as float32, so that a merge into it rounds nothing."""
    from safetensors.torch import load_file, save_file

    copied(kind, folder)
    for file in folder.glob("*.safetensors"):
        tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def routes(model: Any, ids: torch.Tensor = IDS) -> list[Any]:
    """What every router of a mixture answers, layer by layer."""
    found: list[Any] = []
    routers = [module for name, module in model.named_modules() if name.endswith(".router")]
    hooks = [router.register_forward_hook(lambda *call: found.append(call[2])) for router in routers]
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return found


def hold(model: Any, answers: list[Any]) -> Any:
    """The model with its routers answering that, whatever they are asked.

    In a random mixture a rounding sends tokens to other experts, and nothing is bounded any more; with the routes held,
    it is as continuous as a dense model.
    """
    routers = [module for name, module in model.named_modules() if name.endswith(".router")]
    for router, answer in zip(routers, answers, strict=True):
        router.register_forward_hook(lambda *_, answer=answer: answer)
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """The gradients of what learns, by name without PEFT's prefix."""
    return {
        name.removeprefix("base_model.model."): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest relative difference between gradients of the same names."""
    assert set(ours) == set(theirs)
    assert ours
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp_min(1e-12)) for name in theirs)
