"""The account of a request that has ended: counts, a line of the log, a trace, perhaps a shadow's copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.config import Privacy
from gemma_ops.privacy.classes import strictest
from gemma_ops.registry.traffic_runs import TracedRequest
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.model import Said
from gemma_ops.serving.reply_way import PendingRequest
from gemma_ops.serving.shadow import Shadow
from gemma_ops.serving.traffic import TrafficRecorder

Log = Callable[[dict[str, Any]], None]


@dataclass
class RequestAccount:
    """One request, from its arrival to its end."""

    number: str
    protocol: str
    path: str
    began: float = field(default_factory=time.monotonic)
    at_ns: int = field(default_factory=time.time_ns)
    key: str = ""
    """Name of its API key."""
    asked: PendingRequest | None = None
    """The request as it was read, once it holds a service."""


class Accounts:
    """The accounts of a deployment's requests."""

    def __init__(
        self,
        deployment: Deployment,
        log: Log,
        *,
        floor: Privacy = "any",
        shadow: Shadow | None = None,
        traffic: TrafficRecorder | None = None,
    ) -> None:
        """Open the accounts; `floor` is the least strict class that a client may declare."""
        self._deployment, self._log, self._floor = deployment, log, floor
        self.shadow, self.traffic = shadow, traffic

    def outcomes(self) -> dict[str, Mapping[str, int] | None]:
        """Return the outcomes of copies for a shadow and of traces, where there are any."""
        return {
            "shadow": self.shadow.counts if self.shadow else None,
            "traces": self.traffic.counts if self.traffic and self.traffic.traces else None,
        }

    def close(self, account: RequestAccount, status: int) -> None:
        """Close a request that ended with an HTTP status. What another lane answered counts there, and not for the
        version."""
        seconds, asked = time.monotonic() - account.began, account.asked
        service, said = (asked.service, asked.said) if asked else (self._deployment.current, Said())
        elsewhere = asked.outcome is not None and asked.outcome.lane == "gemini" if asked else False
        if not elsewhere:
            service.tally.add(account.protocol, status, said if status == 200 else None, seconds)
        record = {"id": account.number, "protocol": account.protocol, "path": account.path}
        record |= {"key": account.key} if account.key else {}
        lane = {"lane": asked.outcome.lane, "dollars": asked.outcome.dollars} if asked and asked.outcome else {}
        counts = {"prompt_tokens": said.prompt_tokens, "tokens": said.tokens, "end": said.end}
        version = {} if elsewhere else {"version": service.facts.version}
        self._log(record | version | lane | {"status": status, "seconds": round(seconds, 4)} | counts)
        if self.traffic and self.traffic.traces:
            self.traffic.add(self._traced(account, status, seconds))
        if asked:
            asked.lease.end()
            if self.shadow and asked.ask and (status == 200 or status >= 500):
                self.shadow.copy(asked.ask, said, service, seconds, "" if status == 200 else str(status))

    def _traced(self, account: RequestAccount, status: int, seconds: float) -> TracedRequest:
        asked = account.asked
        said, facts = (asked.said, asked.service.facts) if asked else (Said(), self._deployment.current.facts)
        outcome = asked.outcome if asked else None
        here = outcome is None or outcome.lane != "gemini"
        content = bool(asked and self.traffic and self.traffic.content)
        return TracedRequest(
            id=account.number, name=account.path, at_ns=account.at_ns, seconds=seconds, status=status, end=said.end,
            model=facts.model if here or outcome is None else outcome.model, version=facts.version if here else "",
            format=facts.format if here else "", lane=outcome.lane if outcome else "local",
            privacy=self._class(asked), learned=facts.learned if here else "any", key=account.key,
            prompt_tokens=said.prompt_tokens, cached_tokens=said.cached_tokens, reply_tokens=said.tokens,
            thought_tokens=said.thought_tokens, dollars=outcome.dollars if outcome else 0.0,
            asked=asked.body if asked and content else None, said=_message(said) if content and said.end else None,
        )  # fmt: skip

    def _class(self, asked: PendingRequest | None) -> Privacy:
        """Return the class of what was asked: as the policy has it, else as it was declared; private where nothing
        says."""
        if asked is None or asked.privacy is None:
            return "local_only"
        return strictest((asked.privacy, self._floor))


def _message(said: Said) -> dict[str, Any]:
    """Return a reply as OpenAI's protocol has it, which MLflow's pages show as a turn."""
    thought = {"reasoning_content": said.thought} if said.thought else {}
    calls = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in said.calls]
    turn = {"role": "assistant", "content": said.text, **thought, **({"tool_calls": calls} if calls else {})}
    return {"choices": [{"index": 0, "message": turn, "finish_reason": said.end}]}
