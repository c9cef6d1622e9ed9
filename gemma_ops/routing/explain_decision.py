"""The explanation of one request on the command line: read from a text or a protocol's JSON, decided as if it had
arrived."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from gemma_ops.config import MachineConfig, Privacy
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.gemini.models import model_facts
from gemma_ops.gemini.prices import IMAGE_TOKENS, usd_of
from gemma_ops.gemini.service_access import rehearsal
from gemma_ops.privacy.classes import PRIVACY, strictest
from gemma_ops.routing.decision import LaneDecision, decide_lane
from gemma_ops.routing.reply_estimate import estimate_reply
from gemma_ops.routing.routing_evidence import EvidenceTable
from gemma_ops.routing.routing_policy import Modality, RoutingPolicy, load_policy
from gemma_ops.routing.scan import Scan, scan, text_leaves
from gemma_ops.routing.signals import GeminiState, LocalState, Signals
from gemma_ops.targets.gemini_target import seen_by
from gemma_ops.verdicts import Routing
from gemma_ops.wire.ask import RefusalError
from gemma_ops.wire.beyond import Beyond, gemini_beyond, openai_beyond
from gemma_ops.wire.gemini_wire import camel

_NOT_SAID = ("data", "url", "type", "role", "model")
"""Keys whose values are no words of the request."""


@dataclass(frozen=True)
class Supposed:
    """What the command line says about a request and its circumstances."""

    privacy: Privacy | None = None
    task: str = ""
    slices: tuple[str, ...] = ()
    """Values of slices, such as `lang=de`."""
    evidence: Path | None = None
    served: str = ""
    shows: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    tokens: int | None = None
    reply: int = 500
    up: bool = True
    waiting: int = 0
    left: float | None = None
    learned: Privacy = "local_only"
    """Privacy class of the rows that the local model learned from."""


@dataclass(frozen=True)
class Explained:
    """A decision with its inputs."""

    decision: LaneDecision
    signals: Signals
    seconds: float
    """Seconds that the detectors took."""
    counted: str
    """How its tokens were counted, in words."""

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as a JSON object."""
        return {**self.decision.to_json(), "signals": self.signals.to_json(), "tokens_are": self.counted}

    def lines(self) -> list[str]:
        """Return the explanation as a person reads it."""
        found, signals = self.decision, self.signals
        text = [f"{found.lane}", *(f"  {reason}" for reason in found.reasons)]
        size = f"{signals.tokens:,} tokens ({self.counted}), {signals.reply:,} for the reply"
        text.append(f"request: {size}; scanned for personal data and secrets in {1000 * self.seconds:.1f} ms")
        if found.lane == "gemini" and signals.gemini.dollars is not None and signals.gemini.most is not None:
            expected, most = (usd_of(amount) for amount in (signals.gemini.dollars, signals.gemini.most))
            text.append(f"dollars: {expected} expected, {most} reserved")
        return [*text, f"policy: {found.policy[:12]}"]


def explain_request(
    policy: str, file: Path | None, text: str | None, supposed: Supposed, machine: MachineConfig, context: int
) -> Explained:
    """Decide a request without sending it anywhere. `context` are the tokens that the local engine takes.

    Raises ConfigError for a wrong policy or option, DataError for a file that can't be read.
    """
    rules = load_policy(policy)
    if strange := sorted(set(supposed.shows) - set(get_args(Modality))):
        raise ConfigError(f"nothing is shown as {strange[0]!r}", f"one of {', '.join(get_args(Modality))}")
    body = _body(file, text)
    beyond, said = _read(body)
    within = (body.get("metadata") or body.get("labels") or {}) if isinstance(body, dict) else {}
    classes = [one for one in (supposed.privacy, within.get("privacy")) if one is not None]
    if any(one not in PRIVACY for one in classes):
        raise DataError("the request declares a class that does not exist", f"declare {', '.join(PRIVACY)}")
    seen = scan([said], rules.detectors)
    slices = tuple((name, value) for name, _, value in (pair.partition("=") for pair in supposed.slices))
    spoken = isinstance(body, dict) and any(
        turn.get("role") in ("assistant", "model")
        for turn in body.get("messages") or body.get("contents") or ()
        if isinstance(turn, dict)
    )
    signals = _signals(rules, supposed, machine, context, beyond, said, seen)
    signals = replace(
        signals, declared=strictest(classes) if classes else None, slices=slices,
        learned=supposed.learned if spoken else "any",
    )  # fmt: skip
    table = EvidenceTable()
    if supposed.evidence:
        routing = Routing.read(supposed.evidence)
        table = EvidenceTable.of(
            routing, served=supposed.served, rules=rules.gemini, rehearsal=rehearsal(machine.gemini)
        )
    counted = "as given" if supposed.tokens is not None else "estimated"
    return Explained(decide_lane(rules, signals, table), signals, seen.seconds, counted)


def _signals(
    rules: RoutingPolicy,
    supposed: Supposed,
    machine: MachineConfig,
    context: int,
    beyond: Beyond,
    said: str,
    seen: Scan,
) -> Signals:
    tokens = len(said) // 4 + 1 if supposed.tokens is None else supposed.tokens
    shown = tuple(dict.fromkeys((*beyond.modalities, *supposed.shows)))
    known = model_facts(rules.gemini.model)
    plain = all(kind in ("text", "image") for kind in shown) and not (supposed.tools or beyond.hosted)
    bound = max(len(said.encode()), tokens) + IMAGE_TOKENS * (len(shown) - 1) if plain else known.context
    expected, most = estimate_reply(
        rules.gemini, tokens=tokens, reply=supposed.reply, bound=bound, at=datetime.now(UTC),
        tier=machine.gemini.service_tier,
    )  # fmt: skip
    day, own = rules.budget.dollars_per_day, machine.gemini.budget_usd
    left = supposed.left if supposed.left is not None else min(day, own) if own is not None else day
    return Signals(
        found=seen.kinds, scanned=seen.whole, tokens=tokens, reply=supposed.reply, bound=bound, modalities=shown,
        hosted=tuple(dict.fromkeys((*beyond.hosted, *supposed.tools))), task=supposed.task,
        local=LocalState(up=supposed.up, waiting=supposed.waiting, context=context),
        gemini=GeminiState(
            sees=tuple(one for one in PRIVACY if one in seen_by(rules.gemini.model, machine.gemini)),
            context=known.context, left=left,
            dollars=expected, most=most,
        ),
    )  # fmt: skip


def _body(file: Path | None, text: str | None) -> Any:
    """Return the request: JSON where it is that, else its text."""
    if (file is None) == (text is None):
        raise ConfigError("a request is given by a file or by --text", "give one of the two")
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} can't be read: {error}", "give a file of text or JSON in UTF-8") from error
    try:
        found = json.loads(text or "")
    except ValueError:
        return text
    return found if isinstance(found, dict) and ("messages" in found or "contents" in found) else text


def _read(body: Any) -> tuple[Beyond, str]:
    """Return what a request shows and uses beyond text, and its words."""
    if not isinstance(body, dict):
        return Beyond({}), str(body)
    try:
        beyond = gemini_beyond(camel(body)) if "contents" in body else openai_beyond(body)
    except RefusalError as refusal:
        raise DataError(refusal.message, "correct the request") from refusal
    plain = {name: value for name, value in beyond.body.items() if name not in ("metadata", "labels", "model")}
    said = "\n".join(text_leaves(plain, without=_NOT_SAID))
    for mark in beyond.shown:
        said = said.replace(mark, "")
    return beyond, said
