"""One GGUF file fitted to the rows of the user, in the format that it was asked for and not a byte larger.

Three ways, each on top of the one before: `importance` searches scales by what the columns are multiplied with,
`rounding` spreads each column's error over those after it, `scales` trains the float16 values of the blocks and the
norms until the model says what the bf16 model says. Matrices are rounded layer by layer, each seeing what the rounding
of those before it has made of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gemma_ops.family.formats import TensorType
from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.fitted_store import FittedStore
from gemma_ops.fitting.lattice_weight import LatticeWeight, put_lattice
from gemma_ops.fitting.moments import collect_moments
from gemma_ops.fitting.room_groups import groups_within
from gemma_ops.fitting.rounding import round_with_feedback
from gemma_ops.fitting.scale_training import SAVE_EVERY, ScaleTraining, last_states, train_scales
from gemma_ops.ggml.lattices import Blocks, join_blocks
from gemma_ops.ggml.packing import pack_blocks
from gemma_ops.runs import journal

Fit = Literal["importance", "rounding", "scales"]
_MOMENT_BYTES = 2 << 30
"""Bytes of second moments that are kept at once where reading the rows once a layer would take too long: layers are
rounded in groups whose moments fit."""


@dataclass(frozen=True)
class FitTensor:
    """A tensor that is fitted."""

    parameter: str
    """Name of the model's parameter."""
    name: str
    """Name in the file."""
    type: TensorType
    """`F32` for a norm, which only `scales` changes."""


def fit_file(
    model: Any,
    tensors: Sequence[FitTensor],
    rows: Sequence[FitRow],
    store: FittedStore,
    training: ScaleTraining | None,
) -> None:
    """Round the tensors to their types with error feedback on the rows and, with `training`, train their
    scales; all of it into `store`. The model, as it is before, is what the file is fitted to, and is changed."""
    places = {each.parameter: _place(model, each.parameter) for each in tensors}
    matrices = [each for each in tensors if each.type != "F32"]
    teacher = last_states(model, rows) if training else []
    done = 0
    for group in _groups(matrices, places, _patience(model)):
        waiting = [each for each in group if each.name not in store]
        if waiting:
            moments = collect_moments(model, {each.parameter: places[each.parameter] for each in waiting}, rows)
            for each in waiting:
                weight = getattr(*places[each.parameter])
                store.write_rounded(each.name, round_matrix(weight.detach(), moments.of(each.parameter), each.type))
        for each in group:
            weight = getattr(*places[each.parameter])
            blocks = store.read_rounded(each.name, each.type, weight.numel() // weight.shape[-1])
            with torch.no_grad():
                weight.copy_(blocks.decode().view(weight.shape))
        done += len(group)
        journal.record(event="rounding", done=done, tensors=len(matrices))
    if training:
        _train(model, tensors, places, rows, teacher, store, training)


def round_matrix(weight: torch.Tensor, moments: torch.Tensor, kind: TensorType) -> Blocks:
    """Return a matrix, (outputs, inputs), or a stack of them, one an expert, rounded with error feedback; `moments` as
    `Moments.of` gives them."""
    if weight.ndim == 2:
        return round_with_feedback(weight, moments, kind)
    return join_blocks([round_with_feedback(*pair, kind) for pair in zip(weight, moments, strict=True)], 0)


def column_importance(model: Any, tensors: Sequence[FitTensor], rows: Sequence[FitRow]) -> dict[str, torch.Tensor]:
    """Return the mean square of what each column is multiplied with, by name in the file: (inputs,), or (experts,
    inputs)."""
    matrices = [each for each in tensors if each.type != "F32"]
    places = {each.parameter: _place(model, each.parameter) for each in matrices}
    found = {}
    for group in _groups(matrices, places, _MOMENT_BYTES):
        moments = collect_moments(model, {each.parameter: places[each.parameter] for each in group}, rows)
        for each in group:
            found[each.name] = moments.of(each.parameter).diagonal(dim1=-2, dim2=-1).cpu()
    return found


def _train(
    model: Any,
    tensors: Sequence[FitTensor],
    places: dict[str, tuple[Any, str]],
    rows: Sequence[FitRow],
    teacher: Sequence[torch.Tensor],
    store: FittedStore,
    training: ScaleTraining,
) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    lattices: dict[str, LatticeWeight] = {}
    norms: dict[str, torch.nn.Parameter] = {}
    for each in tensors:
        layer, attribute = places[each.parameter]
        weight = getattr(layer, attribute)
        if each.type == "F32":
            norms[each.name] = weight.requires_grad_(True)
            continue
        blocks = store.read_rounded(each.name, each.type, weight.numel() // weight.shape[-1])
        lattices[each.name] = LatticeWeight(blocks, weight.shape, weight.dtype).to(weight.device)
        put_lattice(layer, attribute, lattices[each.name])
    parameters = [parameter for lattice in lattices.values() for parameter in lattice.parameters()] + [*norms.values()]
    for step, loss in train_scales(model, parameters, rows, teacher, training, store):
        if step % SAVE_EVERY == 0 or step == training.steps:
            journal.record(event="scales", done=step, steps=training.steps, kl=loss)
    for name, lattice in lattices.items():
        store.write_trained(name, pack_blocks(lattice.trained_blocks()).cpu().numpy().tobytes())
    for name, norm in norms.items():
        store.write_trained(name, norm.detach().float().cpu().numpy().tobytes())


def _patience(model: Any) -> int:
    """Return the bytes of second moments kept at once: a GPU, and a small model, read the rows once a layer."""
    large = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    return _MOMENT_BYTES if large else 0


def _groups(tensors: Sequence[FitTensor], places: dict[str, tuple[Any, str]], room: int) -> Iterator[list[FitTensor]]:
    """Yield the tensors in groups whose second moments fit into `room` bytes together, all of a layer's in one
    group."""

    def moment_bytes(layer: Sequence[FitTensor]) -> int:
        weights = [getattr(*places[each.parameter]) for each in layer]
        return sum(4 * one.shape[-1] ** 2 * (len(one) if one.ndim == 3 else 1) for one in weights)

    for layers in groups_within(_by_layer(tensors), moment_bytes, room):
        yield [each for layer in layers for each in layer]


def _by_layer(tensors: Sequence[FitTensor]) -> Iterator[list[FitTensor]]:
    layers: dict[str, list[FitTensor]] = {}
    for each in tensors:
        layers.setdefault(".".join(each.name.split(".")[:2]), []).append(each)
    yield from (layers[name] for name in sorted(layers, key=lambda name: int(name.split(".")[1])))


def _place(model: Any, parameter: str) -> tuple[Any, str]:
    """Return the module of a parameter and its attribute there."""
    path, _, attribute = parameter.rpartition(".")
    return model.get_submodule(path), attribute
