"""The output head as part of the model's forward pass: hidden states and targets in, one summed loss out.

Asked with `targets`, the model computes its hidden states, takes those that predict a scored token, and forms loss and
gradient together without ever holding the logits of a pass. Asked without, it is the model it was: generation and
export see no difference. The loss is formed inside `forward`, because wrappers of several devices count on it.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

from gemma_ops.config import TrainConfig
from gemma_ops.training.launch.sharded import whole_tensor
from gemma_ops.training.neftune import Noise


@dataclass
class ScoredLoss:
    """Result of the forward pass; `loss` carries the gradient, the others are for the record."""

    loss: Any
    correct: Any
    """Number of targets that had the largest logit, or None where nobody looked."""


def install_head(model: Any, settings: TrainConfig) -> None:
    """Make the base model inside `model` (plain or with adapters) return a loss for `targets`.

    The new arguments of its forward pass: `targets` [n] token ids, `where` [n] their places in the flattened batch,
    `divisor` a number, `weights` [n] or None, and for `method: distill` the frozen `teacher` model.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    original = base.forward
    noise = Noise(base, settings.neftune) if settings.neftune else None

    @functools.wraps(type(base).forward)  # `generate` asks the signature whether an argument is known
    def forward(self: Any, *args: Any, targets: Any = None, **kwargs: Any) -> Any:
        if targets is None:
            return original(*args, **kwargs)
        where, divisor, weights = kwargs.pop("where"), kwargs.pop("divisor"), kwargs.pop("weights", None)
        teacher = kwargs.pop("teacher", None)
        if noise and self.training:
            noise.documents(kwargs)
        hidden = _picked(self, where, args, kwargs)
        if not len(where):  # a pass another process waits for: a zero that reaches every parameter
            return ScoredLoss(hidden.sum() * 0.0, None)
        return _loss(self, settings, hidden, targets, divisor, weights, teacher, where, args, kwargs)

    base.forward = types.MethodType(forward, base)


def _picked(model: Any, where: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the last hidden states [n, H] of the places asked for; all of them where none is."""
    states = model.model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
    flat = states.reshape(-1, states.shape[-1])
    return flat.index_select(0, where) if len(where) else flat


def _loss(
    model: Any,
    settings: TrainConfig,
    hidden: Any,
    targets: Any,
    divisor: float,
    weights: Any,
    teacher: Any,
    where: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ScoredLoss:
    import torch

    from gemma_ops import kernels

    head, softcap = whole_tensor(model.lm_head.weight), model.config.get_text_config().final_logit_softcapping
    common = {"softcap": softcap, "divisor": divisor, "weights": weights}
    if settings.method == "distill":
        with torch.no_grad():
            other = teacher.get_base_model() if hasattr(teacher, "get_base_model") else teacher
            shown = _picked(other, where, args, kwargs)
        return ScoredLoss(
            kernels.linear_distillation(
                hidden,
                head,
                shown,
                other.lm_head.weight,
                targets,
                teacher_softcap=other.config.get_text_config().final_logit_softcapping,
                temperature=settings.distill.temperature,
                mix=settings.distill.mix,
                **common,
            ),
            None,
        )
    if settings.kernels.head == "trl":
        return ScoredLoss(_by_trl(hidden, head, targets, softcap, divisor, weights, settings.method == "dft"), None)
    if settings.method == "dft":
        return ScoredLoss(kernels.linear_dft(hidden, head, targets, **common), None)
    return ScoredLoss(kernels.linear_cross_entropy(hidden, head, targets, **common), None)


def _by_trl(hidden: Any, head: Any, targets: Any, softcap: Any, divisor: float, weights: Any, dft: bool) -> Any:
    """Return the loss from TRL's tiles, which compute the logits a second time in the backward pass."""
    from trl.kernels import ChunkedLogProbFunction

    tile, logit_scale = 32_768, 1.0
    found = ChunkedLogProbFunction.apply(hidden, head, None, targets, 1.0, tile, softcap, logit_scale, ("log_probs",))[
        0
    ]
    each = -found * found.exp().detach() if dft else -found
    return (each if weights is None else each * weights).sum() / divisor
