"""Rewards from the metrics of evaluation: what an answer is worth against the row's own last answer.

Only metrics that compute are rewards; nothing here asks a model. An answer is read as evaluation reads it, so that what
training raises is what evaluation measures.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gemma_ops.config import ReinforceConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.metrics import by_id
from gemma_ops.metrics.metric import Metric, ScoredRow, Scorer
from gemma_ops.modeling.generate import read_reply

Reward = Callable[..., list[float | None]]


def reward_metrics(settings: ReinforceConfig) -> list[Metric]:
    """Return the metrics of `train.reinforce.rewards`, each with a name of its own. Raises ConfigError with every
    problem."""
    known = by_id()
    found: list[Metric] = []
    problems: list[str] = []
    for index, term in enumerate(settings.rewards):
        where = f"train.reinforce.rewards.{index}"
        if term.metric not in known:
            close = difflib.get_close_matches(term.metric, list(known), n=1)
            hint = f", did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
            problems.append(f"{where}: no metric {term.metric!r}{hint}")
            continue
        try:
            found.append(known[term.metric].model_validate({**term.options, "id": term.metric}))
        except ValidationError as error:
            problems += [
                f"{where}.options: {'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
                for item in error.errors()
            ]
    keys = [metric.key for metric in found]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    problems += [f"train.reinforce.rewards: two are called {key}: give one an option `name`" for key in twice]
    if problems:
        raise ConfigError("\n  ".join(problems), "eval/README.md describes the metrics and their options")
    return found


class Rewards:
    """The rewards of one training, bound to the references of its rows."""

    def __init__(self, settings: ReinforceConfig, references: Sequence[str], tokenizer: Any, stops: set[int]) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.stops = stops
        rows = [_row(str(number), reference) for number, reference in enumerate(references)]
        self.scorers = [metric.scorer(Path(), rows) for metric in reward_metrics(settings)]
        for scorer in self.scorers:
            if rows and all(scorer.score(row.gold, row).values[scorer.key] is None for row in rows[:50]):
                raise DataError(
                    f"the reward {scorer.key} has nothing to say of the references of the rows",
                    "choose a metric that fits what the rows' last answers are",
                )

    def functions(self) -> list[Reward]:
        """Return one function for each term, in the form TRL asks; named as its figures are."""
        return [self._function(scorer) for scorer in self.scorers]

    def _function(self, scorer: Scorer) -> Reward:
        def reward(
            *, completion_ids: list[list[int]], reference: list[str], row: list[str], **_: Any
        ) -> list[float | None]:
            return [
                self.value(scorer, ids, wanted, name)
                for ids, wanted, name in zip(completion_ids, reference, row, strict=True)
            ]

        reward.__name__ = scorer.key
        return reward

    def value(self, scorer: Scorer, ids: list[int], reference: str, row: str) -> float | None:
        """Return what one metric gives for the tokens of an answer; None where it has nothing to say."""
        said = read_reply(self.tokenizer, ids, self.stops)
        return self.judge(scorer, said.text, said.end == "length", reference, row)

    def judge(self, scorer: Scorer, text: str, cut: bool, reference: str, row: str) -> float | None:
        """Return what one metric gives for the text of an answer; None where it has nothing to say."""
        if cut and self.settings.cut == "zero":
            return 0.0
        return scorer.score(text, _row(row, reference)).values[scorer.key]

    def total(self, text: str, cut: bool, reference: str, row: str) -> tuple[float, dict[str, float]]:
        """Return the weighted sum, and each metric by its name; one that has nothing to say counts as nothing."""
        each = {scorer.key: self.judge(scorer, text, cut, reference, row) for scorer in self.scorers}
        weights = (term.weight for term in self.settings.rewards)
        total = sum(weight * (value or 0.0) for weight, value in zip(weights, each.values(), strict=True))
        return total, {key: value for key, value in each.items() if value is not None}


def _row(name: str, reference: str) -> ScoredRow:
    return ScoredRow(name, (), reference)
