"""Log-probabilities of given tokens: the forward pass that every trainer here uses, without padding or whole logits.

TRL's trainers call the model with a padded batch and `fused_lm_head=True`. Here the padding is taken out again before
the model sees it: the rows of the batch stand end to end, told apart by positions that restart, and only the places
that predict a labelled token meet the output head, whose logits are never whole. With `kernels.head: fused` its
gradient is formed in the forward pass, and figures that need every logit (`DROPPED`) are left out of the record;
drawing methods, whose loss has a temperature and whose entropy matters, use TRL's tiles. What goes in and comes out
keeps TRL's shape, so its losses are used as they are.
"""

from __future__ import annotations

import functools
import types
from typing import Any

from gemma_ops.config.methods import REINFORCE
from gemma_ops.training.forward_inputs import BOUNDS
from gemma_ops.training.launch.sharded import whole_tensor

DROPPED = ("entropy", "logits/chosen", "logits/rejected")
"""Figures of TRL's losses that the fused head doesn't know: not a number, and left out."""
_TILE = 32_768
"""Columns of the vocabulary computed at a time."""


class Scoring:
    """Scorer installed into a model; `last` is the result of the newest scored forward pass, for losses that need more
    of it."""

    def __init__(
        self, model: Any, *, packing: bool, bounds: bool, fused: bool, temperature: float, outputs: tuple[str, ...]
    ) -> None:
        self.fused = fused
        self.packing = packing
        self.bounds = bounds
        self.temperature = temperature
        self.outputs = outputs
        self.last: Any = None
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._plain = base.forward
        base.forward = types.MethodType(self._forward(type(base)), base)

    def _forward(self, kind: type) -> Any:
        @functools.wraps(kind.forward)  # type: ignore[attr-defined]  # `generate` reads which arguments there are
        def forward(base: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
            if not fused_lm_head:
                given = {} if labels is None else {"labels": labels}
                return self._plain(*args, **given, **kwargs)
            self.last = self.score(base, labels, **kwargs)
            return self.last

        return forward

    def score(self, base: Any, labels: Any, *, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        """Return TRL's `FusedCausalLMOutput` of a padded batch: fields are [rows, length - 1], zero where there is no
        label."""
        from trl.trainer.utils import FusedCausalLMOutput

        wanted = labels[:, 1:] != -100
        hidden = self._hidden(base, input_ids, attention_mask.bool(), wanted, kwargs)
        softcap = base.config.get_text_config().final_logit_softcapping
        found = self._scored(hidden, whole_tensor(base.lm_head.weight), labels[:, 1:][wanted], softcap)
        # Scattering keeps a batch without a single label connected to the model: it gives a zero with a gradient.
        fields: list[Any] = [None if x is None else x.new_zeros(wanted.shape).masked_scatter(wanted, x) for x in found]
        log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = fields
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / wanted.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=entropy,
            log_sum_sq_probs=log_sum_sq_probs,
            mean_logits=mean_logits,
            is_top1=is_top1,
            label_mask=wanted,
        )

    def _scored(self, hidden: Any, head: Any, labels: Any, softcap: float | None) -> tuple[Any, ...]:
        """Return for each label its log-probability, and (or None) entropy, sum of squared probabilities, mean logit,
        whether it is best."""
        if not self.fused:
            from trl.kernels import ChunkedLogProbFunction

            found: tuple[Any, ...] = ChunkedLogProbFunction.apply(
                hidden, head, None, labels, self.temperature, _TILE, softcap, 1.0, self.outputs
            )
            return found
        from gemma_ops import kernels

        nll, top = kernels.token_scores(hidden, head, labels, softcap=softcap)
        unknown = nll.detach().new_full(nll.shape, float("nan"))
        return -nll, unknown, None, unknown, top

    def _hidden(self, base: Any, ids: Any, mask: Any, wanted: Any, kwargs: dict[str, Any]) -> Any:
        """Return the last hidden states [n, H] of the places that predict a wanted label."""
        kwargs = {**kwargs, "use_cache": False}
        if not self.packing:
            states = base.base_model(input_ids=ids, attention_mask=mask.long(), **kwargs).last_hidden_state
            return states[:, :-1][wanted]
        states = packed(base.base_model, ids, mask, bounds=self.bounds, **kwargs)
        return states[places(mask)[:, :-1][wanted]]


def packed(backbone: Any, ids: Any, mask: Any, *, bounds: bool, **kwargs: Any) -> Any:
    """Return the last hidden states [N, H] of a padded batch's tokens, packed end to end, each row attending to itself.

    No attention mask is given: positions that restart tell the rows apart, and a mask of ones would join them.
    """
    positions = (mask.long().cumsum(1) - 1)[mask][None]
    if bounds:
        kwargs[BOUNDS] = [0, *mask.sum(1).cumsum(0).tolist()]
    return backbone(input_ids=ids[mask][None], position_ids=positions, **kwargs).last_hidden_state[0]


def places(mask: Any) -> Any:
    """Return for every slot of a padded batch where its token stands when they are laid end to end; meaningless for
    padding."""
    return (mask.long().flatten().cumsum(0) - 1).view(mask.shape)


def install_scoring(model: Any, settings: Any, *, temperature: float = 1.0, outputs: tuple[str, ...]) -> Scoring:
    """Replace the forward pass with which TRL's trainer scores tokens. `settings` is the run's `TrainConfig`."""
    bounds = settings.kernels.attention == "documents"
    fused = settings.kernels.head == "fused" and settings.method not in REINFORCE and "log_sum_sq_probs" not in outputs
    return Scoring(
        model, packing=settings.packing, bounds=bounds, fused=fused, temperature=temperature, outputs=outputs
    )
