"""The sections of evaluation and registration: who answers which questions, and what must hold before a version is
promoted."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gemma_ops.config.section import LOCATION, ConfigSection, Name, Share
from gemma_ops.family.formats import DEFAULT_FORMATS, VersionFormat

RUNNING = ("usd_per_1k", "seconds_p50", "seconds_p95", "first_seconds_p50", "first_seconds_p95")
"""Metrics of running a target, known without any task metric: dollars per 1,000 answers, and seconds that half of the
askers, or 95 % of them, wait at most for the whole answer or for its first token."""


class JudgeConfig(ConfigSection):
    """A panel of models that compares answers, for what no metric can score."""

    judges: tuple[str, ...] = ()
    """Targets that judge; none means that nobody does. Best from families that neither wrote nor learned the
    answers."""
    mode: Literal["pairwise", "pointwise"] = "pairwise"
    """`pairwise` compares two answers in both orders; `pointwise` scores each alone by the rubric's criteria."""
    first: str = "tuned"
    """The target whose answers are judged."""
    versus: tuple[str, ...] = ("base",)
    """Targets it is compared with, one comparison each."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Judge only this many rows of each task, the first by hash of their id."""
    repeats: Annotated[int, Field(ge=1, le=10)] = 1
    """Times each question is put; two or more measure how far a judge agrees with itself."""
    max_new_tokens: Annotated[int, Field(ge=64)] = 1024
    """Longest verdict."""
    calibration: Annotated[str | None, LOCATION] = None
    """A `calibration.json` made by `gemma-ops judge calibrate`; without a matching one judges report but don't gate."""


class PromotionAsks(ConfigSection):
    """Conditions of a promotion that no gate decides. They become a part of the model's policy with its gates: when the
    first version is registered, or by `gemma-ops policy NAME --from CONFIG`."""

    memorized: Share = 0.05
    """The largest share of probed training rows whose own words the model may say when shown only how they begin."""
    refusals_lost: Share = 0.1
    """The largest share of the requests refused by the base that the model may answer."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """The most that weights, keys and values may take at `serve.context` and `serve.slots`, in 10⁹ bytes; null sets no
    limit."""
    approval: bool = False
    """Whether somebody must approve: `gemma-ops promote --approved-by NAME`."""
    signature: bool = False
    """Whether a version must be signed by a key that the promoting machine trusts."""


class ProbeConfig(ConfigSection):
    """Questions that an evaluation asks besides its tasks: what the model gives away, and what it no longer refuses."""

    rows: Annotated[int, Field(ge=0)] = 40
    """Training rows that the model is shown the beginning of; 0 asks none, and then a promotion needs an override."""
    tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens that an answer to a probe may have."""


class GateConfig(ConfigSection):
    """One condition of the verdict."""

    metric: str
    """A metric of the task, for example `exact_match`; what judges say, `judge.win_rate` (counted from one half) or
    `judge.pass_rate`; for `at_most` one of `usd_per_1k`, `seconds_p50`, `seconds_p95`,
    `first_seconds_p50`, `first_seconds_p95`."""
    task: str | None = None
    """Which task; may be left out when there is one."""
    target: str = "tuned"
    """Who must pass."""
    test: Literal["superior", "noninferior", "at_least", "at_most"]
    """`superior`: better than `versus` by more than `margin`; `noninferior`: not worse by `margin`; `at_least`: the
    metric itself reaches `margin`; `at_most`: dollars or seconds stay below it. Each is decided on an interval, so it
    can end inconclusive."""
    versus: str | None = None
    """The other target, for the two paired tests."""
    margin: float = 0.0
    """In the metric's own units."""
    most: Annotated[float, Field(gt=0)] | None = None
    """For `usd_per_1k`: dollars of 1,000 answers that each cost as much as one can. Needed where it isn't known from
    what is reserved for an answer: without it no number of answers shows that the next ones aren't dearer."""

    @model_validator(mode="after")
    def _rival(self) -> GateConfig:
        if (self.versus is None) != (self.test in ("at_least", "at_most")):
            raise ValueError("superior and noninferior need `versus`; at_least takes none, nor does at_most")
        if (self.metric in RUNNING) != (self.test == "at_most"):
            raise ValueError(f"at_most is the test of {', '.join(RUNNING)}, and of nothing else")
        if self.most is not None and (self.metric != "usd_per_1k" or self.most <= self.margin):
            raise ValueError("`most` is for usd_per_1k, and above its margin: what 1,000 answers can cost at most")
        return self

    @property
    def words(self) -> str:
        """Return the gate in words: `tuned better than base by more than 0.5 (exact_match)`."""
        if self.metric == "usd_per_1k":
            return f"{self.target} costs at most ${self.margin:g} per 1,000 answers"
        if self.test == "at_most":
            first = "begins to answer" if self.metric.startswith("first") else "answers"
            share = {"p50": "half of the time", "p95": "95% of the time"}[self.metric.rpartition("_")[2]]
            return f"{self.target} {first} within {self.margin:g} s {share}"
        if self.test == "at_least":
            return f"{self.target} {self.metric} at least {self.margin:g}"
        if self.test == "superior":
            return f"{self.target} better than {self.versus} by more than {self.margin:g} ({self.metric})"
        return f"{self.target} not worse than {self.versus} by {self.margin:g} or more ({self.metric})"


class EvaluateConfig(ConfigSection):
    """Who answers which questions, and what must hold."""

    tasks: Annotated[tuple[str, ...], LOCATION] = ()
    """Folders under `eval/` (or paths) holding a `task.yaml`."""
    targets: tuple[str, ...] = ("base", "tuned", *DEFAULT_FORMATS)
    """Who answers: `base`, `tuned` or a quantized format of this run, `gemini:MODEL[@THINKING]`, `openai:URL#MODEL`,
    `gguf:FILE@TOKENIZER_FOLDER`, or a checkpoint folder. The registered model's `champion` answers besides, if there is
    one."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Answer only this many questions of each task, the first by hash of their id."""
    thinking: Literal["as_trained", "off", "on"] = "as_trained"
    """Whether local models are asked to think: as the run's adapter was trained (`train.thinking`; one trained `mixed`
    is asked without), or as said here. Thoughts are stored beside the answer and never scored."""
    thought_tokens: Annotated[int, Field(ge=1)] = 1024
    """Tokens that a reply may spend on thoughts before its answer, where local models are asked to think."""
    control_tokens: Literal["refuse", "spell"] = "refuse"
    """What to do with a question whose own text spells a control token such as `<|turn>`: refuse it, or ask local
    models with the token spelled out, as its characters."""
    hidden: Literal["refuse", "skip"] = "refuse"
    """What to do when a target may not see some rows: refuse before anything is asked, or leave those rows unscored for
    it and compare on the others."""
    gates: tuple[GateConfig, ...] = ()
    """Conditions of the verdict. The registered model's policy is asked first, and these only add to it."""
    judge: JudgeConfig = JudgeConfig()
    """Models that compare answers where no metric can."""
    probes: ProbeConfig = ProbeConfig()
    routing_margin: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Loss on the primary metric at which questions are still kept on a local model instead of being sent to a
    service."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of every interval; what is left to 1 is the level that all gates share, over all looks at the same
    models."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of the bootstraps."""


class RegisterConfig(ConfigSection):
    """The version in MLflow's registry."""

    name: Name | None = None
    """Registered model name; null takes the run's name."""
    champion_of: Name | None = None
    """The registered model whose policy and champion the version is held to, such as the one for production that it is
    to be promoted into; null takes its own."""
    description: str = ""
    """One paragraph for the model card."""
    artifacts: tuple[VersionFormat, ...] = ("adapter", *DEFAULT_FORMATS)
    """What the version carries besides tokenizer, verdict and report. It can answer as `champion` by `merged` or a
    format, or by `adapter` on the same base."""
    asks: PromotionAsks = PromotionAsks()

    def identity(self) -> dict[str, Any]:
        """Return what decides the version: everything except `asks`, from which only the policy of a new model is
        made."""
        found = {name: value for name, value in super().identity().items() if name != "asks"}
        if self.champion_of is None:
            del found["champion_of"]  # runs of before knew no other
        return found
