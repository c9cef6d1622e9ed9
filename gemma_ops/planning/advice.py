"""A plan with advice: what to change when a run doesn't fit or could be faster, found by planning each candidate.

The order is the order of cost to the person: what leaves the result the same (recompute, smaller micro-batches), what
changes it a little (4-bit base), another machine, less of each row, a smaller model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gemma_ops import family
from gemma_ops.config import RunConfig
from gemma_ops.planning import devices
from gemma_ops.planning.devices import Device
from gemma_ops.planning.row_lengths import Counted
from gemma_ops.planning.training_plan import Change, TrainingPlan, measure_plan, pick_device

_WORTH = 1.2
"""Ratio from which a change counts as faster; the estimate can't tell smaller ones apart."""

Values = dict[str, Any]
Candidate = tuple[str, str, Values, Device | None]
"""One candidate: its words, its cost in words, keys to set, another device."""


def plan(config: RunConfig, device: str | None = None, counted: Counted | None = None) -> TrainingPlan:
    """Plan the training of `config` on a device of `devices.DEVICES`, `cpu`, or (None) the one this machine has.

    `counted` are the tokens of the rows where somebody has counted them.

    Raises ConfigError for an unknown device or Hub id, ModelError for a folder that holds no Gemma 4.
    """
    target = pick_device(config, device)
    first = measure_plan(config, target, counted)
    if first.fits == "yes":
        return replace(first, faster=faster_change(config, target, first, counted))
    return replace(first, changes=fitting_changes(config, target, counted))


def fitting_changes(config: RunConfig, target: Device, counted: Counted | None = None) -> tuple[Change, ...]:
    """Return changes after which the run fits for sure, the cheapest first; empty when there is none."""
    settings = _first(config, target, _settings(config), counted)
    machine = _first(config, target, _machines(config, target), counted)
    if settings:  # then nothing of the data or the model need be given up
        return tuple(change for change in (settings, machine) if change)
    last = (_first(config, target, _shorter(config), counted), _first(config, target, _smaller(config), counted))
    return tuple(change for change in (machine, *last) if change)


def _first(
    config: RunConfig, target: Device, candidates: Iterator[Candidate], counted: Counted | None
) -> Change | None:
    """Return the first candidate that fits for sure."""
    for what, cost, values, device in candidates:
        made = measure_plan(_with(config, values), device or target, counted)
        if made.fits == "yes":
            return _change(what, cost, values, device, made)
    return None


def faster_change(
    config: RunConfig, target: Device, current: TrainingPlan, counted: Counted | None = None
) -> Change | None:
    """Return the change that saves most time among those that keep the result and still fit; None below `_WORTH`."""
    train, best = config.train, None
    options: list[tuple[str, Values]] = []
    if train.checkpointing not in ("auto", "none"):
        options.append(("recompute only what must be", {"train.checkpointing": "auto"}))
    if not train.packing:
        options.append(("pack rows", {"train.packing": True}))
        options.append(
            ("pack rows, recompute only what must be", {"train.packing": True, "train.checkpointing": "auto"})
        )
    elif train.micro_tokens:
        options.append(("passes as large as fit", {"train.micro_tokens": None}))
    for what, values in options:
        made = measure_plan(_with(config, values), target, counted)
        if made.fits == "yes" and made.speed and current.speed:
            ratio = made.speed.tokens_per_second / current.speed.tokens_per_second
            if ratio >= _WORTH and (best is None or ratio > best[0]):
                best = ratio, _change(what, f"about {ratio:.1f} times as fast", values, None, made)
    return best[1] if best else None


def _change(what: str, cost: str, values: Values, device: Device | None, made: TrainingPlan) -> Change:
    sets = tuple(f"{key}={_spell(value)}" for key, value in values.items())
    return Change(what, cost, sets, device.key if device else None, made)


_SLOWER, _SAME = "about a third slower", "the same result, a little slower"
_LOSSY = "a small loss of quality, which the evaluation measures"


def _settings(config: RunConfig) -> Iterator[Candidate]:
    """Yield changes of the configuration's keys, those that keep the result before those that touch quality."""
    train = config.train
    recompute: Values = {} if train.checkpointing in ("auto", "all") else {"train.checkpointing": "auto"}
    if train.weights == "fp32" and train.tune == "lora":
        yield "hold the base in bf16", "none in practice", {"train.weights": "bf16"}, None
    smaller = _smaller_passes(config)
    for also, values in smaller:
        if recompute or values:
            slower = _SLOWER if recompute else _SAME
            yield _joined("recompute what must be" if recompute else "", also), slower, recompute | values, None
    if train.weights != "nf4" and train.tune == "lora":
        four: Values = {"train.weights": "nf4"}
        yield "4-bit base (QLoRA)", _LOSSY, four, None
        for also, values in smaller:
            if recompute or values:
                what = _joined("4-bit base (QLoRA)", "recompute what must be" if recompute else "", also)
                yield what, f"{_SLOWER}; {_LOSSY}", four | recompute | values, None


def _smaller_passes(config: RunConfig) -> list[tuple[str, Values]]:
    """Return the configuration as it is, then forward passes of fewer tokens, where the configuration fixes them."""
    train, found = config.train, [("", dict[str, Any]())]
    if not train.packing:
        found += [
            (_rows(n), {"train.micro_batch": n}) for n in range(train.micro_batch - 1, 0, -1) if train.batch % n == 0
        ]
        found.append(("packed rows", {"train.packing": True}))
    elif train.micro_tokens:
        found.append(("passes as large as fit", {"train.micro_tokens": None}))
    return found


def _joined(*words: str) -> str:
    return ", ".join(word for word in words if word)


def _rungs(config: RunConfig) -> Iterator[tuple[str, str, Values]]:
    """Yield the configuration as it is, at its most frugal without touching the result, and at its most frugal of
    all."""
    train = config.train
    frugal: Values = {}
    if train.checkpointing not in ("auto", "all"):
        frugal["train.checkpointing"] = "auto"
    if not train.packing:
        frugal["train.packing"] = True
    elif train.micro_tokens:
        frugal["train.micro_tokens"] = None
    yield "", "", {}
    if frugal:
        yield ", the plan's own passes", f"; {_SLOWER}", frugal
    if train.weights != "nf4" and train.tune == "lora":
        yield ", 4-bit base (QLoRA)", f"; {_LOSSY}", frugal | {"train.weights": "nf4"}


def _machines(config: RunConfig, target: Device) -> Iterator[Candidate]:
    """Yield GPUs with more memory, or the same with bfloat16 units, the cheapest by the hour first."""
    known = sorted(devices.DEVICES.values(), key=lambda device: device.dollars or 0.0)
    for also, price, values in _rungs(config):
        for device in known:
            if device.bf16 and device.key != target.key and device.memory > target.memory:
                cost = f"${device.dollars:.2f} an hour, {device.priced}{price}"
                yield f"use {_article(device.name)} {device.name}{also}", cost, values, device


def _shorter(config: RunConfig) -> Iterator[Candidate]:
    """Yield shorter rows: the ends of longer ones are lost."""
    for also, price, values in _rungs(config):
        length = config.train.max_length // 2
        while length >= 256:
            cost = f"the ends of longer rows are lost{price}"
            yield f"cut rows at {length:,} tokens{also}", cost, {"train.max_length": length} | values, None
            length //= 2


def _smaller(config: RunConfig) -> Iterator[Candidate]:
    """Yield the next smaller sizes of the same variant."""
    known = family.repos().get(config.model.base)
    if known is None:
        return
    size, variant = known
    order = list(family.SIZES)
    for key in reversed(order[: order.index(size.key)]):
        repo = next(repo for repo, kind in family.SIZES[key].repos.items() if kind == variant)
        for also, price, values in _rungs(config):
            yield f"take {key}{also}", f"a smaller model{price}", {"model.base": repo} | values, None


def _with(config: RunConfig, values: Values) -> RunConfig:
    """Return the configuration with dotted keys replaced, validated again, because keys depend on each other."""
    body = config.model_dump(by_alias=True)
    for key, value in values.items():
        *sections, name = key.split(".")
        place = body
        for section in sections:
            place = place[section]
        place[name] = value
    return RunConfig.model_validate(body)


def _rows(count: int) -> str:
    return "one row at a time" if count == 1 else f"{count} rows at a time"


def _spell(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _article(name: str) -> str:
    return "an" if name[0] in "AHLR" else "a"
