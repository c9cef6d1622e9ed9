"""A routing policy: which lanes a privacy class may take, and what sends work from one to the other. YAML, frozen,
strict.

Rows of class `local_only` stay on the machine whatever a policy says, and a request that declares no class is one of
them: neither is a setting.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gemma_ops.config import ConfigSection, Privacy, shipped
from gemma_ops.config.loading import read_document
from gemma_ops.gemini.models import Thinking
from gemma_ops.gemini.request import HOSTED
from gemma_ops.privacy.personal_data import KINDS
from gemma_ops.runs import digest
from gemma_ops.verdicts.routing_record import RoutingDecision

Lane = Literal["local", "gemini", "refuse"]
Place = Literal["local", "gemini"]
Modality = Literal["text", "image", "audio", "video", "document"]
SHELF = "configs/routing"
"""Folder of shipped policies, and of those in the working folder."""
BOUNDED = {"code": HOSTED[0], "url": HOSTED[1]}
"""Tools of the service that may be carried to it, by our name, with the service's."""


class ClassLanes(ConfigSection):
    """The lanes of each privacy class, the preferred one first; an empty list refuses the class."""

    local_only: tuple[Literal["local"], ...] = ("local",)
    """Only `local` may stand here."""
    paid: tuple[Place, ...] = ("local",)
    """May be sent to Gemini under paid terms, where `gemini` stands here."""
    any: tuple[Place, ...] = ("local", "gemini")
    """May be sent anywhere."""

    def of(self, privacy: Privacy) -> tuple[Place, ...]:
        """Return the lanes of a class."""
        return {"local_only": self.local_only, "paid": self.paid, "any": self.any}[privacy]


class Detectors(ConfigSection):
    """Patterns of personal data and secrets. They raise a class and never lower one; names and diagnoses have no
    pattern."""

    raise_to: Privacy = "local_only"
    """The class of a request in which something is found."""
    kinds: dict[str, Privacy] = Field(default_factory=dict)
    """Another class for what one detector finds, such as `IP: paid`; `any` ignores it."""
    seconds: Annotated[float, Field(gt=0)] = 2.0
    """The longest that a request is scanned; what could not be scanned in it is `local_only`."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if strange := sorted(set(self.kinds) - set(KINDS)):
            raise ValueError(f"detectors.kinds: no detector is called {strange[0]}; there are {', '.join(KINDS)}")
        return self

    def raised(self, kind: str) -> Privacy:
        """Return the class that a finding raises to."""
        return self.kinds.get(kind, self.raise_to)


class LocalLimits(ConfigSection):
    """What is asked of the local model at most; the server's own limits hold too."""

    context: Annotated[int, Field(ge=1)] | None = None
    """Tokens of prompt and reply together; null takes what the engine has."""
    modalities: tuple[Modality, ...] = ("text",)


class QualityRules(ConfigSection):
    """What the evaluation's routing table (`routing.json`) does, for requests that say their task."""

    send: Place = "gemini"
    """Where work goes whose slice was shown to be worse here."""
    undecided: Place = "local"
    """Where work goes of whose slice nothing is shown."""


class LatencyRules(ConfigSection):
    """Limits of waiting, above which work that may go to Gemini is sent there."""

    waiting: Annotated[int, Field(ge=0)] = 8
    """Requests that wait for the local engine."""
    wait_seconds: Annotated[float, Field(ge=0)] = 20.0
    """Expected wait for it."""


class BudgetRules(ConfigSection):
    """Dollars. What is reserved counts, the most that a request can cost; nothing here ever stops local work."""

    dollars_per_day: Annotated[float, Field(ge=0)] = 5.0
    """Held by the ledger across restarts; the smaller of it and `machine.gemini.budget_usd` counts. Days are UTC."""
    dollars_per_request: Annotated[float, Field(ge=0)] = 0.25


class GeminiRules(ConfigSection):
    """The settings by which Gemini is asked."""

    model: str = "gemini-3.8-flash"
    thinking: Thinking | None = "low"
    """Where a request doesn't say; null takes the model's own default."""
    modalities: tuple[Modality, ...] = ("text", "image", "document", "audio", "video")
    hosted_tools: tuple[Literal["code", "url"], ...] = ()
    """Tools that the service runs by itself and that requests may use. Each may make the model read as much as it
    takes, and is reserved at that. Search can't stand here: nobody bounds how often it searches, and each time
    costs."""
    attempts: Annotated[int, Field(ge=1)] = 2
    """Tries per request before the local model is asked instead, where it may be."""


class ProbeTraits(ConfigSection):
    """A request by its traits, as a probe gives it. What is left out is the plainest there is."""

    privacy: Privacy | None = None
    """The class that it declares."""
    text: str = ""
    """Scanned by the detectors."""
    tokens: Annotated[int, Field(ge=0)] = 500
    reply: Annotated[int, Field(ge=0)] = 500
    modalities: tuple[Modality, ...] = ("text",)
    functions: Annotated[int, Field(ge=0)] = 0
    hosted_tools: tuple[str, ...] = ()
    evidence: RoutingDecision | None = None
    """What the evaluation showed of its slice."""
    context: Annotated[int, Field(ge=1)] = 4096
    """Tokens that the local engine takes."""
    up: bool = True
    waiting: Annotated[int, Field(ge=0)] = 0
    wait_seconds: Annotated[float, Field(ge=0)] = 0.0
    left: Annotated[float, Field(ge=0)] | None = None
    """Dollars left today; null takes the policy's whole day."""
    learned: Privacy = "any"
    """The class of what the local model learned, where it spoke in the conversation."""
    paid_terms: bool = True
    """Whether Gemini is asked under paid terms."""


class Probe(ConfigSection):
    """An example that the policy must decide as it says."""

    name: str
    given: ProbeTraits = ProbeTraits()
    lane: Lane
    because: str = ""
    """Words that must stand in the reasons."""


class RoutingPolicy(ConfigSection):
    """A whole policy."""

    classes: ClassLanes = ClassLanes()
    detectors: Detectors = Detectors()
    local: LocalLimits = LocalLimits()
    quality: QualityRules = QualityRules()
    latency: LatencyRules = LatencyRules()
    budget: BudgetRules = BudgetRules()
    gemini: GeminiRules = GeminiRules()
    probes: tuple[Probe, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 in hex of everything that decides; probes don't."""
        return digest.of_json({name: value for name, value in self.identity().items() if name != "probes"})


def load_policy(name: str) -> RoutingPolicy:
    """Read the policy in a file, or a shipped one by its name. Raises ConfigError with every problem, its file and its
    line."""
    return read_document(shipped.find_shipped(SHELF, name, ".yaml"), RoutingPolicy, "routing policy")
