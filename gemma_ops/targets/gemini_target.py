"""Gemini as a target. What may be sent, what it costs and how a killed run is taken up again is decided behind
`open_gemini`; here a conversation becomes a request, and answers come back in batches as they are ready."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

from gemma_ops.answer import Answer, Prompt
from gemma_ops.config import GeminiConfig, MachineConfig, Privacy
from gemma_ops.errors import ConfigError
from gemma_ops.gemini import open_gemini
from gemma_ops.gemini.models import ModelFacts, model_facts
from gemma_ops.gemini.request import Request, Use
from gemma_ops.gemini.service_access import rehearsal
from gemma_ops.targets.spec import TargetSpec
from gemma_ops.targets.target import EnginePace

THOUGHTS = {"minimal": 512, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768}
"""Tokens that a reply may spend on thoughts before it begins, by thinking level. The service counts thoughts against
the limit of the reply, so a limit meant for the reply alone would cut most replies off inside the thought."""


def output_limit(known: ModelFacts, thinking: str | None, reply: int) -> int:
    """Return the limit to ask for, so that a reply of `reply` tokens fits behind its thoughts."""
    level = thinking or known.default_thinking or "medium"
    return min(reply + THOUGHTS[level], known.output or reply + THOUGHTS[level])


def seen_by(model: str, settings: GeminiConfig) -> frozenset[str]:
    """Return the privacy classes that may be sent to a model under the declared tier."""
    paid = model_facts(model).paid_tier and (settings.tier == "paid" or settings.enterprise)
    return frozenset({"any", "paid"}) if paid else frozenset({"any"})


def target_identity(spec: TargetSpec, settings: GeminiConfig) -> str:
    """Return the identity of who answers."""
    return gemini_identity(spec.model, spec.thinking, rehearsed=rehearsal(settings))


def gemini_identity(model: str, thinking: str | None, *, rehearsed: bool = False) -> str:
    """Return the identity of a model at a thinking level. What an emulator says is no evidence about Gemini, and must
    not be taken for it later."""
    return f"{model}@{thinking or 'default'}" + (" (rehearsal)" if rehearsed else "")


def request(
    spec: TargetSpec,
    prompt: Prompt,
    reply: int,
    *,
    use: Use,
    schema: dict[str, Any] | None = None,
    stream: bool = False,
) -> Request:
    """Return the request for one conversation; `reply` is the limit of the visible reply in tokens."""
    return Request(
        model=spec.model,
        messages=tuple(prompt.messages),
        max_output_tokens=output_limit(model_facts(spec.model), spec.thinking, reply),
        use=use,
        privacy=prompt.privacy,
        schema=schema,
        thinking=spec.thinking,
        repeat=prompt.repeat,
        tools=tuple(prompt.tools),
        stream=stream,
        id=prompt.id,
    )


class GeminiTarget:
    """One Gemini model at one thinking level."""

    lockstep = False
    learned: Privacy = "any"

    def __init__(self, spec: TargetSpec, machine: MachineConfig, *, run: str, use: Use) -> None:
        """Open the model; raises ConfigError for an unknown model or level, and whatever `open_gemini` refuses. Nothing
        is sent."""
        known = model_facts(spec.model)
        if not known.takes(spec.thinking):
            raise ConfigError(
                f"target {spec.name}: {spec.model} has no thinking level {spec.thinking!r}",
                f"leave it out, or use one of {', '.join(known.thinking or ()) or 'none: its levels are not known'}",
            )
        self.name, self.family = spec.name, spec.family
        self.identity = target_identity(spec, machine.gemini)
        self.sees = seen_by(spec.model, machine.gemini)
        self.place = "sent: paid, not logged" if "paid" in self.sees else "sent: unpaid, may be read and used"
        if rehearsal(machine.gemini):
            self.place = "rehearsal: answered by an emulator"
        self._spec, self._use = spec, use
        # A batch job has no first token to wait for, so only what is sent one by one is streamed.
        self._stream = use == "evaluate" and machine.gemini.batch != "always"
        self._gemini = open_gemini(machine, run=run)
        self.pace = EnginePace(at_once=machine.gemini.concurrency)

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]:
        """Send everything at once and yield batches as they fill. What was answered before an error is yielded first.

        `max_new_tokens` is meant for the visible reply; thoughts come on top.
        """
        requests = [
            request(self._spec, prompt, max_new_tokens, use=self._use, schema=schema, stream=self._stream)
            for batch in batches
            for prompt in batch
        ]
        arrived: SimpleQueue[tuple[int, Answer] | BaseException | None] = SimpleQueue()

        def asking() -> None:
            try:
                self._gemini.ask(requests, on_answer=lambda index, answer: arrived.put((index, answer)))
                arrived.put(None)
            except BaseException as error:
                arrived.put(error)

        worker = Thread(target=asking, name=f"ask {self.name}", daemon=True)
        worker.start()
        known: dict[int, Answer] = {}
        at = 0
        for batch in batches:
            wanted = range(at, at + len(batch))
            while not all(index in known for index in wanted):
                item = arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    raise RuntimeError("the door to Gemini left requests unanswered")
                known[item[0]] = item[1]
            yield [known[index] for index in wanted]
            at += len(batch)
        worker.join()

    def close(self) -> None:
        self._gemini.close()
