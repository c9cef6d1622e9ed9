"""What to change when a run doesn't fit, or could be faster, found by trying: each candidate is planned, and only one
that fits is offered.

The order is the order of cost to the person: what leaves the result the same (recompute, smaller micro-batches), what
changes it a little (4-bit base), another machine, less of each row, a smaller model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemma_ops import devices, family
from gemma_ops.config import RunConfig
from gemma_ops.devices import Device
from gemma_ops.planning.make import Change, Plan, measure

_WORTH = 1.2
"""A change is faster from this ratio on; the estimate can't tell smaller ones apart."""

Values = dict[str, Any]
Candidate = tuple[str, str, Values, Device | None]
"""What it is, what it costs, keys to set, another device."""


def changes(config: RunConfig, target: Device) -> tuple[Change, ...]:
    """Ways to make it fit for sure, the cheapest first; empty when there is none."""
    settings = _first(config, target, _settings(config))
    machine = _first(config, target, _machines(config, target))
    if settings:  # then nothing of the data or the model need be given up
        return tuple(change for change in (settings, machine) if change)
    last = (_first(config, target, _shorter(config)), _first(config, target, _smaller(config)))
    return tuple(change for change in (machine, *last) if change)


def _first(config: RunConfig, target: Device, candidates: Iterator[Candidate]) -> Change | None:
    """The first candidate that fits for sure."""
    for what, cost, values, device in candidates:
        made = measure(_with(config, values), device or target)
        if made.fits == "yes":
            return _change(what, cost, values, device, made)
    return None


def faster(config: RunConfig, target: Device, current: Plan) -> Change | None:
    """The change that saves most time among those that leave the result alone and still fit; None below `_WORTH`."""
    train, best = config.train, None
    options: list[tuple[str, Values]] = []
    if train.checkpointing:
        options.append(("keep activations instead of recomputing them", {"train.checkpointing": False}))
    if not train.packing:
        larger = [rows for rows in range(train.micro_batch + 1, train.batch + 1) if train.batch % rows == 0]
        grouped: Values = {"train.trl.train_sampling_strategy": "group_by_length"}
        already = train.trl.get("train_sampling_strategy") == "group_by_length"
        options += [(f"{rows} rows at a time", {"train.micro_batch": rows}) for rows in larger]
        if not already:
            options += [("rows of like length together", grouped)] if train.micro_batch > 1 else []
            options += [
                (f"{rows} rows of like length at a time", grouped | {"train.micro_batch": rows}) for rows in larger
            ]
    for what, values in options:
        made = measure(_with(config, values), target)
        if made.fits == "yes" and made.speed and current.speed:
            ratio = made.speed.tokens_per_second / current.speed.tokens_per_second
            if ratio >= _WORTH and (best is None or ratio > best[0]):
                best = ratio, _change(what, f"about {ratio:.1f} times as fast", values, None, made)
    return best[1] if best else None


def _change(what: str, cost: str, values: Values, device: Device | None, made: Plan) -> Change:
    sets = tuple(f"{key}={_spell(value)}" for key, value in values.items())
    return Change(what, cost, sets, device.key if device else None, made)


_SLOWER, _SAME = "about a third slower", "the same result, a little slower"
_LOSSY = "a small loss of quality, which the evaluation measures"


def _settings(config: RunConfig) -> Iterator[Candidate]:
    """Keys of the configuration, those that leave the result alone before those that touch quality."""
    train = config.train
    recompute: Values = {} if train.checkpointing else {"train.checkpointing": True}
    lower = [] if train.packing else [n for n in range(train.micro_batch - 1, 0, -1) if train.batch % n == 0]
    if train.weights == "fp32":
        yield "hold the base in bf16", "none in practice", {"train.weights": "bf16"}, None
    if recompute:
        yield "recompute activations", _SLOWER, recompute, None
    for rows in lower:
        yield _rows(rows), _SAME, {"train.micro_batch": rows}, None
    if recompute:
        for rows in lower:
            yield f"recompute activations, {_rows(rows)}", _SLOWER, recompute | {"train.micro_batch": rows}, None
    if train.weights != "nf4":
        four: Values = {"train.weights": "nf4"}
        yield "4-bit base (QLoRA)", _LOSSY, four, None
        if recompute:
            yield "4-bit base (QLoRA), recomputed activations", f"{_SLOWER}; {_LOSSY}", four | recompute, None
        for rows in lower:
            what = f"4-bit base (QLoRA), recomputed activations, {_rows(rows)}"
            yield what, f"{_SLOWER}; {_LOSSY}", four | recompute | {"train.micro_batch": rows}, None


def _rungs(config: RunConfig) -> Iterator[tuple[str, str, Values]]:
    """The configuration as it is, at its most frugal without touching the result, and at its most frugal of all."""
    train = config.train
    frugal: Values = {} if train.checkpointing else {"train.checkpointing": True}
    if not train.packing and train.micro_batch > 1:
        frugal["train.micro_batch"] = 1
    yield "", "", {}
    if frugal:
        yield ", recomputed activations, one row at a time", f"; {_SLOWER}", frugal
    if train.weights != "nf4":
        yield ", 4-bit base (QLoRA), one row at a time", f"; {_LOSSY}", frugal | {"train.weights": "nf4"}


def _machines(config: RunConfig, target: Device) -> Iterator[Candidate]:
    """GPUs with more memory, or the same with the right arithmetic, the cheapest by the hour first."""
    known = sorted(devices.DEVICES.values(), key=lambda device: device.dollars or 0.0)
    for also, price, values in _rungs(config):
        for device in known:
            if device.bf16 and device.key != target.key and device.memory > target.memory:
                cost = f"${device.dollars:.2f} an hour, {device.priced}{price}"
                yield f"use {_article(device.name)} {device.name}{also}", cost, values, device


def _shorter(config: RunConfig) -> Iterator[Candidate]:
    """Shorter rows: the ends of longer ones are lost."""
    for also, price, values in _rungs(config):
        length = config.train.max_length // 2
        while length >= 256:
            cost = f"the ends of longer rows are lost{price}"
            yield f"cut rows at {length:,} tokens{also}", cost, {"train.max_length": length} | values, None
            length //= 2


def _smaller(config: RunConfig) -> Iterator[Candidate]:
    """The next smaller sizes of the same variant."""
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
    """The configuration with dotted keys replaced; validated again, because keys depend on each other."""
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
    return str(value).lower() if isinstance(value, bool) else str(value)


def _article(name: str) -> str:
    return "an" if name[0] in "AHLR" else "a"
