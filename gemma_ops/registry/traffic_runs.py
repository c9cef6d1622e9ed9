"""A server's traffic in MLflow: a trace per request, and a run whose metrics grow while it serves.

Both are filed in an experiment of their own, `<machine.experiment>-serving`, so that its page opens with traces. Only
MLflow's own interface is used (`start_span_no_context`), with our own figures: MLflow prices Gemini's thoughts at
nothing, and local models not at all.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from gemma_ops.config import MachineConfig, Privacy
from gemma_ops.errors import ConfigError
from gemma_ops.privacy.classes import strictest
from gemma_ops.registry import profile

_SUFFIX = "-serving"
_EXPORTER = "mlflow.tracing.export.mlflow_v3"
"""Name of the logger that reports on writing traces."""
_PAGE = {"mlflow.experimentKind": "genai_development"}
"""Kind of experiment whose page shows traces."""


@dataclass(frozen=True)
class TracedRequest:
    """A request that has ended."""

    id: str
    """Id of the request, as in the header `x-request-id` and the server's log."""
    name: str
    """Path that was asked."""
    at_ns: int
    """Arrival of the request, in nanoseconds since 1970."""
    seconds: float
    status: int
    """HTTP status."""
    end: str = ""
    """End of the reply; empty where it broke off."""
    model: str = ""
    version: str = ""
    format: str = ""
    lane: str = "local"
    """Lane in which it was answered."""
    privacy: Privacy = "local_only"
    """Privacy class of the question."""
    learned: Privacy = "local_only"
    """Privacy class of the model's answers."""
    key: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reply_tokens: int = 0
    thought_tokens: int = 0
    dollars: float | None = 0.0
    """US dollars that it cost; None where that isn't known."""
    asked: Any = None
    """Body of the request, where content is kept."""
    said: Any = None
    """Text of the reply, where content is kept."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(**body)

    @property
    def content_class(self) -> Privacy:
        """Return the strictest class of what was asked and what was said."""
        return strictest((self.privacy, self.learned))


class _Lost(logging.Handler):
    """Listener for traces that MLflow couldn't file: MLflow logs that, and raises nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: list[str] = []
        log = logging.getLogger(_EXPORTER)
        log.handlers, log.propagate = [self], False
        log.setLevel(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.append(record.getMessage().splitlines()[0][:200])

    def told(self) -> str:
        """Return what was heard since the last time, the first of it; empty where nothing was."""
        heard, self._heard = self._heard, []
        return heard[0] if heard else ""


class TrafficPlace:
    """The experiment that a server's traffic is filed in.

    Raises what `profile.connect_mlflow` raises; the methods raise ServiceError while MLflow is away.
    """

    def __init__(self, machine: MachineConfig, title: str) -> None:
        """Open the place; `title` says what is served and names the run."""
        self._tracking = profile.connect_mlflow(machine)
        self.leaves_machine = self._tracking.leaves_machine
        """Whether what is filed goes to another host."""
        # One request after another: what can't be written is reported here, and not in a thread of MLflow's.
        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
        self._title, self._run = title, ""
        self._lost, self._doubted = _Lost(), False
        with profile.mlflow_calls(self._tracking.place):
            self._experiment = self._found(machine.experiment + _SUFFIX)

    def trace(self, one: TracedRequest) -> None:
        """File a request."""
        import mlflow

        used = {"input_tokens": one.prompt_tokens, "output_tokens": one.reply_tokens + one.thought_tokens}
        attributes: dict[str, Any] = {
            "mlflow.chat.tokenUsage": used | {"total_tokens": sum(used.values())},
            "mlflow.llm.model": f"{one.model}/{one.version}" if one.version else one.model,
            "gemma_ops.cached_tokens": one.cached_tokens, "gemma_ops.thought_tokens": one.thought_tokens,
            "gemma_ops.status": one.status, "gemma_ops.end": one.end,
        }  # fmt: skip
        if one.dollars is not None:
            # Of prompt and reply together: the ledger doesn't tell them apart.
            attributes["mlflow.llm.cost"] = {"input_cost": 0.0, "output_cost": one.dollars, "total_cost": one.dollars}
        tags = {
            "version": one.version, "format": one.format, "lane": one.lane, "privacy": one.privacy, "key": one.key,
            "request": one.id,
        }  # fmt: skip
        if self._doubted:  # each try costs MLflow seconds while nobody is there
            profile.probe_mlflow(self._tracking.place)
        with profile.mlflow_calls(self._tracking.place):
            span = mlflow.start_span_no_context(
                one.name, "CHAT_MODEL", inputs=one.asked, attributes=attributes,
                tags={f"gemma_ops.{name}": value for name, value in tags.items() if value},
                experiment_id=self._experiment, start_time_ns=one.at_ns,
            )  # fmt: skip
            if one.said is not None:
                span.set_outputs(one.said)
            span.end(status="OK" if one.status < 400 else "ERROR", end_time_ns=one.at_ns + round(one.seconds * 1e9))
        why = self._lost.told()
        self._doubted = bool(why)
        if why:
            raise profile.unreachable(self._tracking.place, why)

    def count(self, values: Mapping[str, float]) -> None:
        """Write the server's metrics as they are now."""
        from mlflow.entities import Metric

        client, now = self._tracking.client, round(time.time() * 1000)
        with profile.mlflow_calls(self._tracking.place):
            if not self._run:
                tags = {"gemma_ops.served": self._title, "mlflow.runName": f"serve {self._title}"}
                self._run = client.create_run(self._experiment, tags=tags).info.run_id
            client.log_batch(self._run, metrics=[Metric(name, value, now, 0) for name, value in values.items()])

    def close(self) -> None:
        """Record that the server has ended."""
        if self._run:
            with profile.mlflow_calls(self._tracking.place):
                self._tracking.client.set_terminated(self._run)

    def _found(self, name: str) -> str:
        """Return the experiment's id; it is made where there is none, next to the one for runs."""
        client = self._tracking.client
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "active":
            raise ConfigError(
                f"the MLflow experiment {name!r} was deleted",
                f"restore it: mlflow experiments restore -x {found.experiment_id}",
            )
        if found is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(name, artifact_location=self._tracking.stores or None, tags=_PAGE))
