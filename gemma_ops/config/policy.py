"""The policy of a registered model: the gates, the questions and the confidence that no run may soften.

`gates` name their task; those against `champion` are asked whenever there is one. A run's own gates only add to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from gemma_ops.config.evaluation import GateConfig, PromotionAsks
from gemma_ops.config.section import ConfigSection, Privacy

CHAMPION = "champion"
"""Name of the target that is the present champion of the registered model."""
CHAMPION_MARGIN = 0.05
"""Margin of the gate against the champion where the person who set the policy named none."""
STANDARD = "standard.json"
"""File in the folder of the step `champion` with what the registry asks of this run, as a `PromotionStandard`."""
CHAMPION_LOOKS = "looks.jsonl"
"""File in the folder of the step `champion` with the looks that earlier versions of the model took."""
CHAMPION_MODEL = "model"
"""Folder inside that of the step `champion` with the champion's files."""


class PolicyTask(ConfigSection):
    """The questions of a task: the digest of its content, how many of them are asked at least, and its primary
    metric."""

    digest: str
    rows: Annotated[int, Field(ge=1)]
    primary: str


class PromotionPolicy(ConfigSection):
    """What must hold before a version is promoted."""

    gates: Annotated[tuple[GateConfig, ...], Field(min_length=1)]
    tasks: dict[str, PolicyTask]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    asks: PromotionAsks = PromotionAsks()

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write the policy without `asks` where it says nothing special, so that older policies keep their digest."""
        body: dict[str, Any] = write(self)
        if self.asks == PromotionAsks():
            body.pop("asks", None)
        return body

    def identity(self) -> dict[str, Any]:
        """Return the policy as it is written: without `asks` where it says nothing special."""
        found = super().identity()
        if self.asks == PromotionAsks():
            found.pop("asks")
        return found


class ChampionFacts(ConfigSection):
    """The version that was the champion when it was pulled."""

    name: str
    version: str
    manifest: str
    form: str
    """Which of its files answers: `merged`, a quantized format, or what is put on the base, `adapter` and `tuned`."""
    base: Annotated[dict[str, str], Field(default_factory=dict)]
    """SHA-256 of the files of the base it was made from, by name."""
    learned: Privacy = "local_only"
    """The class of the rows that it learned from, by its manifest; the strictest where that doesn't say."""

    def fits(self, base: Mapping[str, str]) -> bool:
        """True if it can answer where the base has these files: by itself, or on the very weights it was made from."""
        weights = [
            {name: sha256 for name, sha256 in files.items() if name.endswith(".safetensors")}
            for files in (self.base, base)
        ]
        return self.form not in ("adapter", "tuned") or weights[0] == weights[1]


class PromotionStandard(ConfigSection):
    """What the registry asks of a run: its policy, and the present champion to be compared with."""

    policy: PromotionPolicy | None = None
    champion: ChampionFacts | None = None
    why_none: str = ""
    """Why there is no champion to compare with, in words."""


def make_policy(
    gates: Iterable[GateConfig],
    tasks: Mapping[str, PolicyTask],
    confidence: float,
    asks: PromotionAsks | None = None,
) -> PromotionPolicy | None:
    """Make the policy of these gates on these tasks, with what is asked as well; None without a gate.

    Of each task that a gate asks about, the first target that is judged must not be worse than the champion by
    `CHAMPION_MARGIN` or more on the primary metric, unless a gate against the champion is among them.
    """
    only = next(iter(tasks)) if len(tasks) == 1 else None
    named = [gate.model_copy(update={"task": gate.task or only}) for gate in gates]
    if not named:
        return None
    wanted = {gate.task for gate in named}
    asked = {name: facts for name, facts in tasks.items() if name in wanted}
    for task, facts in asked.items():
        here = [gate for gate in named if gate.task == task]
        if any(gate.versus == CHAMPION for gate in here):
            continue
        target = next((gate.target for gate in here if gate.target != "base"), here[0].target)
        named.append(
            GateConfig(
                task=task,
                metric=facts.primary,
                target=target,
                test="noninferior",
                versus=CHAMPION,
                margin=CHAMPION_MARGIN,
            )
        )
    return PromotionPolicy(gates=tuple(named), tasks=asked, confidence=confidence, asks=asks or PromotionAsks())


def same_question(first: GateConfig, second: GateConfig) -> bool:
    """True if two gates ask the same thing, whatever their margins."""
    keys = ("task", "metric", "target", "test", "versus")
    return all(getattr(first, key) == getattr(second, key) for key in keys)


def at_least_as_strict(gate: GateConfig, wanted: GateConfig) -> bool:
    """True if a gate that asks the same leaves no more room than the one that is wanted."""
    below = wanted.test in ("noninferior", "at_most")
    return gate.margin <= wanted.margin if below else gate.margin >= wanted.margin


def softer(before: PromotionPolicy, after: PromotionPolicy) -> list[str]:
    """Return what a changed policy no longer asks, or asks less of, in words; empty where it only grew stricter."""
    found = []
    for gate in before.gates:
        held = next((one for one in after.gates if same_question(one, gate)), None)
        if held is None:
            found.append(f"no more: {gate.words} on {gate.task}")
        elif not at_least_as_strict(held, gate):
            found.append(f"margin {held.margin:g} instead of {gate.margin:g}: {gate.words} on {gate.task}")
    for name, task in before.tasks.items():
        other = after.tasks.get(name)
        if other is None:
            continue
        if other.digest != task.digest:
            found.append(f"other content of task {name}: {other.digest[:12]} instead of {task.digest[:12]}")
        if other.rows < task.rows:
            found.append(f"{other.rows:,} questions of {name} instead of {task.rows:,}")
    if after.confidence < before.confidence:
        found.append(f"confidence {after.confidence:g} instead of {before.confidence:g}")
    return found + _softer_asks(before.asks, after.asks)


def _softer_asks(before: PromotionAsks, after: PromotionAsks) -> list[str]:
    found = []
    for key in ("memorized", "refusals_lost", "memory_gb"):
        old, new = getattr(before, key), getattr(after, key)
        if old is not None and (new is None or new > old):
            found.append(f"{key} {'unlimited' if new is None else format(new, 'g')} instead of {old:g}")
    found += [f"no {key} asked" for key in ("approval", "signature") if getattr(before, key) > getattr(after, key)]
    return found
