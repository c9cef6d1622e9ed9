"""The process that sends: `python -m gemma_ops.gemini.courier`, started by the door, outliving it if need be.

What is on the wire when a run is killed will be billed, so it has to be finished and kept. This process is in a session
of its own, where neither Ctrl-C nor the kill of its parent reaches it. It reads one JSON object per line:

    {"open": {"gemini": …, "ledger": path, "run": …, "caps": […], "since": …, "rehearsal": …, "lasting": …}}   first
    {"ask": [{"n": number, "request": …}, …], "batch": false}                      any number of times

and writes {"n", "answer", "tries", "faults"}, or {"n", "error": {"kind", "what", "fix"}}, one line per request, and
{"note": {…}} for the journal; `lasting`, it also writes {"n", "piece"} for the text of a stream as it comes. When its
input ends it sends nothing more, finishes what is on the wire, and leaves.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_ops import errors
from gemma_ops.config import GeminiConfig
from gemma_ops.errors import OpsError, ServiceError
from gemma_ops.gemini import boundary
from gemma_ops.gemini.batch import BatchDoor
from gemma_ops.gemini.cache import Store
from gemma_ops.gemini.client import Client, Sent
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.service_access import endpoint, rehearsal

_GONE = ServiceError("nobody waits for the answer any more", "run the same command again")


class Courier:
    """Courier: takes requests in and hands answers out."""

    def __init__(self, opening: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        self.config = GeminiConfig.model_validate(opening["gemini"])
        if rehearsal(self.config) != opening["rehearsal"]:
            raise ServiceError(
                f"at {self.config.base_url} it was {'an emulator' if opening['rehearsal'] else 'no emulator'} a "
                "moment ago, and no longer is; nothing was sent",
                "start `gemma-ops dev gemini-emulator` again, or correct machine.gemini.base_url",
            )
        run_cap, project_cap = opening["caps"]
        ledger = SpendingLedger(Path(opening["ledger"]), run=opening["run"], run_cap=run_cap, project_cap=project_cap)
        store, self._lasting = Store(ledger, endpoint(self.config)), opening.get("lasting", False)
        self.client = Client(self.config, store, since=opening["since"], lasting=self._lasting)
        self._say = say
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._workers = [threading.Thread(target=self._run) for _ in range(self.config.concurrency)]
        self._batches: list[threading.Thread] = []
        for worker in self._workers:
            worker.start()

    def take(self, message: dict[str, Any]) -> None:
        """Start requests; each is answered or refused."""
        numbered = {item["n"]: Request.from_json(item["request"]) for item in message["ask"]}
        if message["batch"]:
            self._batches.append(threading.Thread(target=self._by_batch, args=(numbered,)))
            self._batches[-1].start()
        else:
            for number, request in numbered.items():
                self._queue(number, request)

    def leave(self) -> None:
        """Stop sending, and return when nothing is on the wire."""
        self.client.leaving.set()
        self.client.stop(_GONE)
        for batch in self._batches:
            batch.join()
        for _ in self._workers:
            self._work.put(None)
        for worker in self._workers:
            worker.join()

    def _run(self) -> None:
        while task := self._work.get():
            task()

    def _queue(self, number: int, request: Request) -> None:
        self._work.put(lambda: self._guarded([number], lambda: self._one(number, request)))

    def _one(self, number: int, request: Request) -> None:
        self._check([request])
        pieces = self._lasting and request.stream
        hear = (lambda text: self._say({"n": number, "piece": text})) if pieces else None
        self._answered(number, self.client.answer(request, hear))

    def _by_batch(self, numbered: dict[int, Request]) -> None:
        """Send as a batch; what is left over is sent one by one."""
        waiting = dict(numbered)

        def on_answer(number: int, sent: Sent) -> None:
            del waiting[number]
            self._answered(number, sent)

        def work() -> None:
            self._check(list(numbered.values()))
            BatchDoor(self.client, note=lambda **fields: self._say({"note": fields})).answer(numbered, on_answer)
            for number, request in waiting.items():
                self._queue(number, request)

        self._guarded(waiting, work)

    def _check(self, requests: list[Request]) -> None:
        """Check the boundary again, on this side of the pipe. Personal data was reported there; here only a refusal
        counts."""
        silent = {"pii": "off"} if self.config.pii == "report" else {}
        boundary.check_boundary(requests, self.config.model_copy(update=silent))

    def _answered(self, number: int, sent: Sent) -> None:
        self._say({"n": number, "answer": asdict(sent.answer), "tries": sent.tries, "faults": sent.faults})

    def _guarded(self, numbers: Any, work: Callable[[], None]) -> None:
        """Run a function, and report any failure for every request that it leaves unanswered."""
        try:
            work()
        except Exception as error:
            told = describe_error(error)
            for number in list(numbers):
                self._say({"n": number, "error": told})


def describe_error(error: Exception) -> dict[str, str]:
    """Return an error as it goes through the pipe; a defect takes its traceback along."""
    if isinstance(error, OpsError):
        return {"kind": type(error).__name__, "what": error.what, "fix": error.fix}
    return {"kind": "defect", "what": "".join(traceback.format_exception(error)), "fix": ""}


def revive(told: dict[str, str]) -> Exception:
    """Return the error that `describe` put into the pipe."""
    kind = getattr(errors, told["kind"], None)
    if isinstance(kind, type) and issubclass(kind, OpsError):
        return kind(told["what"], told["fix"])
    return RuntimeError(f"in the courier:\n{told['what']}")


def courier_main() -> None:
    """Serve the lines of stdin until they end."""
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            try:
                sys.stdout.write(json.dumps(message) + "\n")
                sys.stdout.flush()
            except (BrokenPipeError, ValueError):
                pass  # the door is gone; the answer is in the store

    lines = sys.stdin
    try:
        courier = Courier(json.loads(lines.readline())["open"], say)
    except Exception as error:
        say({"broken": describe_error(error)})
        return
    try:
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                break  # the door died in the middle of a line
            courier.take(message)
    finally:
        courier.leave()


if __name__ == "__main__":
    courier_main()
