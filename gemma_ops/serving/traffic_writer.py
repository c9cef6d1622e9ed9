"""The process that files a server's traffic in MLflow: `python -m gemma_ops.serving.traffic_writer`.

It reads JSON lines: first what it files for, then traces and counts. It says what goes wrong in JSON lines, each
trouble once, and goes on. It ends with its input, and so with the server, whatever ends that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import OpsError
from gemma_ops.registry.traffic_runs import TracedRequest, TrafficPlace
from gemma_ops.routing.routing_policy import Detectors
from gemma_ops.routing.scan import scan, text_leaves
from gemma_ops.wire.beyond import shows


def writer_main() -> None:
    """File what stdin holds."""
    write_traffic(sys.stdin, _tell)


def write_traffic(lines: Iterable[str], tell: Callable[[str], None]) -> None:
    """File the lines of a server; `tell` is told of each problem once."""
    feed = iter(lines)
    writer = _Writer(json.loads(next(feed)), tell)
    for line in feed:
        writer.tried(writer.file, json.loads(line))
    writer.tried(lambda _: writer.close(), None)


class _Writer:
    """Writer for one server, with the problems it has reported."""

    def __init__(self, start: dict[str, Any], tell: Callable[[str], None]) -> None:
        self._start, self._tell = start, tell
        self._told: set[str] = set()
        self._place: TrafficPlace | None = None

    def tried(self, work: Callable[[Any], None], body: Any) -> None:
        try:
            work(body)
        except OpsError as error:
            if error.what not in self._told:
                self._told.add(error.what)
                self._tell(f"traffic is not filed in MLflow: {error.what}")

    def file(self, body: dict[str, Any]) -> None:
        """File a trace, or counts. MLflow is looked for again each time, while it is away."""
        if self._place is None:
            self._place = TrafficPlace(MachineConfig.model_validate(self._start["machine"]), self._start["title"])
        if "trace" in body:
            self._place.trace(allowed(TracedRequest.from_json(body["trace"]), elsewhere=self._place.leaves_machine))
        else:
            self._place.count(body["counts"])

    def close(self) -> None:
        if self._place is not None:
            self._place.close()


def allowed(traced: TracedRequest, *, elsewhere: bool) -> TracedRequest:
    """Return the request as it may be filed. Where MLflow is `elsewhere`, content that is `local_only`, or in which
    something personal or secret is found or could be seen or heard, stays here."""
    if not elsewhere or traced.asked is None:
        return traced
    texts = ["\n".join(text_leaves(part)) for part in (traced.asked, traced.said)]
    found = None if traced.content_class == "local_only" else scan(texts, Detectors())
    if found is None or found.kinds or not found.whole or shows(traced.asked):
        return replace(traced, asked=None, said=None)
    return traced


def _tell(problem: str) -> None:
    print(json.dumps({"problem": problem}), flush=True)


if __name__ == "__main__":
    writer_main()
