"""The inputs of a comparison of costs: an evaluation that measured speed and tokens, or figures given by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_ops.config import MachineConfig, RunConfig
from gemma_ops.errors import ConfigError
from gemma_ops.evaluation import answer_cost
from gemma_ops.evaluation.breakeven import Own, Workload
from gemma_ops.family.formats import QUANTIZED
from gemma_ops.planning import devices
from gemma_ops.verdicts import VERDICT, TargetFacts, TargetResult, Verdict
from gemma_ops.verdicts.document import MachineFacts
from gemma_ops.verdicts.measurements import SpeedFacts

_LOCAL = ("tuned", "base", *(each.name for each in sorted(QUANTIZED.values(), key=lambda each: each.bits)))
"""Targets on this machine, the first of which is compared where none is named: the smallest file before larger ones."""


@dataclass(frozen=True)
class Given:
    """Figures from the command line; each replaces what was measured."""

    prompt_tokens: float | None = None
    new_tokens: float | None = None
    thought_tokens: float | None = None
    tokens_per_second: float | None = None
    """New tokens per second, of all answers decoded together."""
    device: str | None = None
    target: str | None = None
    task: str | None = None


def read_evaluation(config: RunConfig, given: Given) -> tuple[Own, Workload, dict[str, tuple[str, Workload]]]:
    """Return the machine, the tokens of an answer, and the Gemini targets that were measured in the same evaluation.

    Raises ConfigError when something is neither measured nor given, or an hour of the machine has no known price.
    """
    path = Path(config.machine.runs) / config.name / "evaluate" / VERDICT
    wanted = (given.prompt_tokens, given.new_tokens, given.tokens_per_second)
    found = (
        None
        if all(value is not None for value in wanted) and not (given.target or given.task)
        else _result(path, given)
    )
    results = found[1] if found else []
    speed = found[0].speed if found else SpeedFacts()
    where = f"{found[0].target} on {found[0].task}, {path}" if found else "as given"

    def figure(name: str, value: float | None, measured: float | None) -> float:
        number = measured if value is None else value
        if not number or number <= 0:
            raise ConfigError(f"the {name} of an answer are not known from {where}", f"give --{name.replace(' ', '-')}")
        return float(number)

    prompt = figure("prompt tokens", given.prompt_tokens, speed.mean_prompt_tokens)
    new = figure("new tokens", given.new_tokens, speed.mean_new_tokens)
    per_second = figure("tokens per second", given.tokens_per_second, speed.new_tokens_per_second)
    source = where if found and given.prompt_tokens is None and given.new_tokens is None else "as given"
    work = Workload(prompt, new, given.thought_tokens or 0.0, source)
    measured = found[2].machine if found else None
    if given.device and given.tokens_per_second is None:
        _same(given.device, measured)
    dollars, price_from = _hour(config.machine, given.device, measured)
    own = Own(
        answers_per_second=per_second / new,
        dollars_per_hour=dollars,
        utilisation=config.machine.utilisation,
        speed_from=f"{per_second:,.4g} new tokens/s, {'as given' if given.tokens_per_second else where}",
        price_from=price_from,
    )
    return (
        own,
        work,
        {} if given.prompt_tokens or given.new_tokens else _rivals(results, found[2].targets if found else {}, path),
    )


def _result(path: Path, given: Given) -> tuple[TargetResult, Sequence[TargetResult], Verdict]:
    """Return the measured local target, every result on its task, and the whole verdict."""
    fix = "evaluate first, or give --prompt-tokens, --new-tokens and --tokens-per-second"
    if not path.exists():
        raise ConfigError(f"there is no evaluation at {path}", fix)
    verdict = Verdict.read(path)
    tasks = list(dict.fromkeys(item.task for item in verdict.results))
    names = list(dict.fromkeys(item.target for item in verdict.results))
    task = _one("task", given.task, tasks, tasks[:1])
    target = _one("target", given.target, names, [name for name in _LOCAL if name in names])
    on_task = verdict.results_of(task)
    return next(item for item in on_task if item.target == target), on_task, verdict


def _one(kind: str, wanted: str | None, known: Sequence[str], preferred: Sequence[str]) -> str:
    if wanted is not None and wanted not in known:
        raise ConfigError(f"the evaluation has no {kind} {wanted!r}", f"use one of {', '.join(known)}")
    if wanted is None and not preferred:
        raise ConfigError(
            f"the evaluation has no {kind} on this machine", f"name one with --{kind}: {', '.join(known)}"
        )
    return preferred[0] if wanted is None else wanted


def _same(device: str, measured: MachineFacts | None) -> None:
    """Refuse the price of one machine for the speed of another. Raises ConfigError."""
    name, where = devices.get_device(device).name, measured.source if measured else "a machine that was not recorded"
    if not where.startswith(f"{name},"):
        raise ConfigError(
            f"--device prices {name}, and the speed was measured elsewhere ({where})",
            f"give its speed on {name} with --tokens-per-second, or leave --device out",
        )


def _rivals(
    results: Sequence[TargetResult], targets: Mapping[str, TargetFacts], path: Path
) -> dict[str, tuple[str, Workload]]:
    """Return Gemini targets with the tokens they used themselves, or that an emulator made up in their place."""
    found = {}
    for item in results:
        kind, _, rest = item.target.partition(":")
        speed = item.speed
        if kind == "gemini" and speed.mean_new_tokens and speed.mean_prompt_tokens is not None:
            rehearsed = item.target in targets and targets[item.target].place.startswith("rehearsal")
            work = Workload(
                speed.mean_prompt_tokens, speed.mean_new_tokens, speed.mean_thought_tokens or 0.0,
                f"{'made up by an emulator' if rehearsed else 'measured'}, {path}", rehearsed,
            )  # fmt: skip
            found[rest] = (rest.partition("@")[0], work)
    return found


def _hour(machine: MachineConfig, device: str | None, measured: MachineFacts | None) -> tuple[float, str]:
    """Return dollars an hour and where the figure is from: the reader's own, else of the machine whose speed was
    measured."""
    if device is not None:
        chosen = devices.get_device(device)
        dollars, where = chosen.dollars, f"{chosen.name}, {chosen.priced}"
    elif machine.dollars_per_hour is None and measured and measured.dollars:
        dollars, where = measured.dollars, f"{measured.source}, as evaluated"
    else:
        known = answer_cost.hour(machine)
        dollars, where = known["dollars"], known["from"]
    if not dollars:
        raise ConfigError(
            f"an hour of this machine has no known price ({where})",
            "set machine.dollars_per_hour, or name a GPU with --device",
        )
    return dollars, where


def services(machine: MachineConfig, given: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return services with a price of the reader's: those of `machine.endpoints`, and `NAME=IN/OUT` in dollars per
    million tokens."""
    found = {
        endpoint.url: (endpoint.dollars_in, endpoint.dollars_out)
        for endpoint in machine.endpoints
        if endpoint.dollars_in is not None and endpoint.dollars_out is not None
    }
    for text in given:
        name, _, figures = text.rpartition("=")
        fresh, _, output = figures.partition("/")
        try:
            pair = (float(fresh), float(output))
        except ValueError:
            pair = (-1.0, -1.0)
        if not name or min(pair) < 0:
            raise ConfigError(
                f"--hosted {text!r} is no price", "write NAME=IN/OUT, such as --hosted provider=0.10/0.30"
            )
        found[name] = pair
    return found
