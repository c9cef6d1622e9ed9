"""The figures of one judge's outcomes: rates with intervals, its habits, and warnings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gemma_ops.judging import agreement, answer_style, winrate
from gemma_ops.judging.alone import Alone
from gemma_ops.judging.judge_material import JudgedPair
from gemma_ops.judging.judge_outcome import Tally, label
from gemma_ops.judging.judgements import Judgement
from gemma_ops.stats import intervals, paired
from gemma_ops.stats.intervals import Sample

Facts = dict[str, Any]
FLIPS = 0.25
"""Share of flipped pairs above which a reader is warned."""
INVALID = 0.05
"""Share of verdicts that never became valid above which a reader is warned."""


def cluster_names(pairs: Sequence[JudgedPair]) -> dict[str, str]:
    """Return what counts as independent: a pair's cluster, else the pair."""
    return {pair.id: pair.cluster if pair.cluster is not None else f"\0{pair.id}" for pair in pairs}


def pairwise_figures(pairs: Sequence[JudgedPair], tally: Tally, confidence: float, seed: int) -> Facts:
    """Return the figures of one judge, or the panel, on pairs."""
    names = cluster_names(pairs)
    facts = judge_rates(pairs, tally.scores, confidence, seed)
    facts |= {
        "flips": _share([float(flip) for _, flip in tally.flips], [names[item] for item, _ in tally.flips], confidence),
        "opposite": tally.opposite,
        "first_slot": _rate([(item, share) for item, share in tally.slots], names, confidence),
        "retest": retest(tally.repeats, names, confidence, seed),
        "criteria": {
            name: _rate(list(scores.items()), names, confidence) for name, scores in sorted(tally.criteria.items())
        },
        "asked": tally.asked,
        "invalid": tally.invalid,
        "lost": len(tally.lost),
    }
    return facts | {"warnings": _warnings(facts)}


def judge_rates(pairs: Sequence[JudgedPair], scores: Mapping[str, float], confidence: float, seed: int) -> Facts:
    """Return win rates, raw and at equal length, and what longer answers get."""
    names = cluster_names(pairs)
    kept = [pair for pair in pairs if pair.id in scores]
    controlled = winrate.controlled(
        [scores[pair.id] for pair in kept],
        [answer_style.gap(pair) for pair in kept],
        [names[pair.id] for pair in kept],
        confidence,
        seed,
    )
    longer = answer_style.longer_wins(kept, scores, names, confidence)
    return {
        "win_rate": _rate([(pair.id, scores[pair.id]) for pair in kept], names, confidence),
        "controlled": None if controlled is None else asdict(controlled),
        "longer_wins": None if longer is None else asdict(longer),
        "labels": {name: sum(label(scores[pair.id]) == name for pair in kept) for name in ("first", "tie", "second")},
    }


def pointwise_figures(pairs: Sequence[JudgedPair], sides: Mapping[str, Alone], confidence: float, seed: int) -> Facts:
    """Return the figures of one judge on answers scored alone: per side its score and pass rate, and their difference
    row by row."""
    names = cluster_names(pairs)
    found: Facts = {"sides": {}}
    for name, alone in sides.items():
        found["sides"][name] = {
            "score": _share(list(alone.scores.values()), [names[item] for item in alone.scores], confidence),
            "pass_rate": _share(list(alone.passes.values()), [names[item] for item in alone.passes], confidence),
            "criteria": {
                criterion: {"mean": sum(scores.values()) / len(scores), "n": len(scores)}
                for criterion, scores in sorted(alone.criteria.items())
            },
            "retest": retest(alone.repeats, names, confidence, seed),
        }
    both = [item for item in names if all(item in alone.scores for alone in sides.values())]
    if len(sides) == 2 and both:
        first, second = ([alone.scores[item] for item in both] for alone in sides.values())
        found["difference"] = asdict(paired.compare_paired(first, second, [names[item] for item in both], confidence))
    found |= {
        key: sum(getattr(alone, key) for alone in sides.values()) for key in ("asked", "invalid")
    }  # fmt: skip
    found["lost"] = sum(len(alone.lost) for alone in sides.values())
    return found | {"warnings": _warnings(found)}


def retest(
    repeats: Sequence[tuple[str, str, str]], names: Mapping[str, str], confidence: float, seed: int
) -> Facts | None:
    """Return how far a judge agrees with itself when asked the same again; None when nothing was asked twice."""
    if not repeats:
        return None
    before, after = [one for _, one, _ in repeats], [other for _, _, other in repeats]
    groups = [names[item] for item, *_ in repeats]
    share = _share([float(a == b) for a, b in zip(before, after, strict=True)], groups, confidence)
    kappa = agreement.kappa_interval(before, after, groups, confidence, seed)
    return {"agreement": share, "kappa": None if kappa is None else asdict(kappa)}


def judge_usage(judgements: Sequence[Judgement]) -> Facts:
    """Return the tokens and dollars of the verdicts. `dollars` is None where nothing was billed."""
    paid = [item.dollars for item in judgements if item.dollars is not None]
    return {
        "verdicts": len(judgements),
        "repaired": sum(item.tries > 1 and item.verdict is not None for item in judgements),
        "ends": {
            end: n for end in ("stop", "length", "blocked", "error") if (n := sum(i.end == end for i in judgements))
        },
        "prompt_tokens": sum(item.prompt_tokens for item in judgements),
        "new_tokens": sum(item.new_tokens for item in judgements),
        "thought_tokens": sum(item.thought_tokens for item in judgements),
        "seconds": sum(item.seconds for item in judgements),
        "dollars": sum(paid) if paid else None,
        "models": sorted({item.model for item in judgements if item.model}),
    }


def tidy(value: Any) -> Any:
    """Round to six digits, at any depth: more than any interval needs, and the file stays readable."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: tidy(item) for key, item in value.items()}
    return [tidy(item) for item in value] if isinstance(value, list | tuple) else value


def _rate(scores: Sequence[tuple[str, float]], names: Mapping[str, str], confidence: float) -> Facts | None:
    found = winrate.win_rate([score for _, score in scores], [names[item] for item, _ in scores], confidence)
    return None if found is None else asdict(found)


def _share(values: Sequence[float], groups: Sequence[str], confidence: float) -> Facts | None:
    return asdict(intervals.mean_interval(Sample.of(values, groups), confidence)) if values else None


def _warnings(facts: Facts) -> list[str]:
    found = []
    flips, slot, longer = facts.get("flips"), facts.get("first_slot"), facts.get("longer_wins")
    if flips and flips["value"] > FLIPS:
        found.append(
            f"{flips['value']:.0%} of its verdicts change when the answers change places, and {FLIPS:.0%} is a lot"
        )
    if slot and (slot["low"] > 0.5 or slot["high"] < 0.5):
        favoured = "first" if slot["low"] > 0.5 else "second"
        found.append(
            f"it favours the {favoured} slot: {slot['value']:.0%} of verdicts go to slot A "
            f"({slot['low']:.0%} to {slot['high']:.0%}); both orders cancel this, a single order would not have"
        )
    if longer and (longer["low"] > 0.5 or longer["high"] < 0.5):
        kind = "longer" if longer["low"] > 0.5 else "shorter"
        found.append(f"the {kind} answer of a pair tends to win; read the win rate at equal length beside the raw one")
    if facts["asked"] and facts["invalid"] / facts["asked"] > INVALID:
        found.append(f"{facts['invalid']:,} of {facts['asked']:,} verdicts were not valid and are left out")
    return found
