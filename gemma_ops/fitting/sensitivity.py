"""What a type would change of what the model says, tensor by tensor, before any file is written.

To second order the divergence KL(bf16 || quantized) of a row is ½ E[(δ · ∇L)²]: ∇L is the gradient of the
log-probability of tokens that the bf16 model draws itself, δ what the type changes of the weights (the Fisher
information along δ; Martens 2020, arXiv 1412.1193, section 5). One backward pass a row and draw gives δ · ∇L for every
tensor and type at once. The products add up over tensors before they are squared, so a file's divergence is told with
what its tensors do to each other. Of a mixture of experts it is told too low: that tokens go to other experts has no
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gemma_ops.family.formats import TensorType
from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.packed_rows import packed_states
from gemma_ops.fitting.room_groups import groups_within
from gemma_ops.runs import journal

Rounding = Callable[[torch.Tensor, TensorType], torch.Tensor]
"""What a type makes of rows, (rows, width) float32 both."""
_DRAWS = 2
"""Answers of the model's own that are drawn for each row."""
_ROOM = 2 << 30
"""Bytes of changes that are kept at once; more tensors take another pass over the rows."""
_CHANGE_BYTES = 2
_HEAD = 256
"""Positions whose logits exist at once."""
_PIECE = 1 << 21
"""Numbers that are rounded at once."""


@dataclass(frozen=True)
class Candidate:
    """A tensor and the types that it may be stored in."""

    parameter: str
    """Name of the model's parameter."""
    name: str
    """Name in the file."""
    types: tuple[TensorType, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Changes of the log-probability of drawn tokens: by tensor and type one number for each row and draw, in nats,
    float64 (rows × draws,)."""

    shifts: Mapping[tuple[str, TensorType], torch.Tensor]
    tokens: int
    """Tokens of the rows."""

    def divergence(self, types: Mapping[str, TensorType]) -> float:
        """Return the divergence of a file whose tensors have these types, in nats a token."""
        squares = torch.stack([self.shifts[pair] for pair in types.items()]).sum(0).square()
        return float(self._nats(squares).mean())

    def alone(self, name: str, kind: TensorType) -> tuple[float, float]:
        """Return the divergence where one tensor alone has the type, in nats a token, and the upper end of its 95 %
        interval over rows and draws."""
        each = self._nats(self.shifts[name, kind].square())
        return float(each.mean()), float(each.mean() + 1.96 * each.std() / len(each) ** 0.5)

    def _nats(self, squares: torch.Tensor) -> torch.Tensor:
        return 0.5 * squares * (len(squares) / _DRAWS) / self.tokens


def measure_sensitivity(
    model: Any, candidates: Sequence[Candidate], rows: Sequence[FitRow], rounding: Rounding, seed: int
) -> Sensitivity:
    """Measure what the candidates' types change. The model must be prepared by `install_reading`; its weights stay as
    they are."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    used = torch.tensor(sorted({token for row in rows for token in row.ids}))
    shifts: dict[tuple[str, TensorType], list[float]] = {}
    done = 0
    for group in groups_within(candidates, lambda each: _change_bytes(model, each, len(used)), _ROOM):
        learning = [_Learning(model, each, used, rounding) for each in group]
        for number, row in enumerate(rows):
            for draw in range(_DRAWS):
                _add_gradients(model, row, seed + number * _DRAWS + draw)
                for each in learning:
                    for kind, product in each.take_products():
                        shifts.setdefault((each.name, kind), []).append(product)
        for each in learning:
            each.stop()
        done += len(group)
        journal.record(event="sensitivity", done=done, tensors=len(candidates))
    found = {pair: torch.tensor(values, dtype=torch.float64) for pair, values in shifts.items()}
    return Sensitivity(found, sum(map(len, rows)))


class _Learning:
    """A parameter that has gradients, and what each type changes of it. Of a table that is only looked up, gradients
    and changes are those of the rows in `used`."""

    def __init__(self, model: Any, candidate: Candidate, used: torch.Tensor, rounding: Rounding) -> None:
        self.name = candidate.name
        self._parameter = model.get_parameter(candidate.parameter)
        self._table = _lookup(model, candidate.parameter)
        self._used = used
        rows = self._parameter.detach().view(-1, self._parameter.shape[-1])
        if self._table is not None:
            self._table.sparse = True
            rows = rows[used.to(rows.device)]
        pieces = rows.split(max(1, _PIECE // rows.shape[-1]))
        self._changes = {
            kind: torch.cat([(rounding(piece.float(), kind) - piece.float()).bfloat16() for piece in pieces])
            for kind in candidate.types
        }
        self._parameter.requires_grad_(True)

    def take_products(self) -> Iterator[tuple[TensorType, float]]:
        """Yield the product of each type's change with the gradient, and forget the gradient."""
        gradient = self._parameter.grad
        self._parameter.grad = None
        for kind, change in self._changes.items():
            if self._table is None:
                product = change.view_as(gradient).to(gradient.device) * gradient
            else:
                places = torch.searchsorted(self._used, gradient.coalesce().indices()[0].cpu())
                product = change[places] * gradient.coalesce().values().to(change.device)
            yield kind, float(product.sum(dtype=torch.float64))

    def stop(self) -> None:
        """Leave the parameter as it was found."""
        self._parameter.requires_grad_(False)
        if self._table is not None:
            self._table.sparse = False


def _add_gradients(model: Any, row: FitRow, seed: int) -> None:
    """Add the gradients of the log-probability of tokens drawn by the model at each position of a row."""
    head = model.lm_head.weight
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    generator = torch.Generator().manual_seed(seed)
    states = packed_states(model, [row])
    cut = states.detach().requires_grad_(True)
    for piece in cut.split(_HEAD):
        logits = (piece @ head.t()).float()
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator).to(logits.device)
        logits.log_softmax(-1).gather(-1, drawn).sum().backward()
    if states.requires_grad:
        states.backward(cut.grad)


def _lookup(model: Any, parameter: str) -> Any | None:
    """Return the module of a table that is only looked up; None for other parameters, and for embeddings that are the
    head too."""
    module = model.get_submodule(parameter.rpartition(".")[0])
    looked_up = isinstance(module, torch.nn.Embedding) and module.weight is not model.lm_head.weight
    return module if looked_up else None


def _change_bytes(model: Any, each: Candidate, used: int) -> int:
    """Return the bytes of a candidate's changes, of a table that is only looked up those of the rows in use."""
    weight = model.get_parameter(each.parameter)
    rows = used if _lookup(model, each.parameter) is not None else weight.numel() // weight.shape[-1]
    return int(_CHANGE_BYTES * len(each.types) * rows * weight.shape[-1])
