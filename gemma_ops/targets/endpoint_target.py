"""Any OpenAI-compatible chat endpoint: vLLM, llama.cpp's server, a hosted model.

Replies are streamed, so that the time to the first token is known. A busy or absent server is asked again and then ends
the work with an error, so that going on later answers the rest; a question that the server refuses ends as an answer of
kind `error` with the server's words, and the others go on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2

from gemma_ops.answer import Answer, Prompt
from gemma_ops.config import EndpointConfig, MachineConfig, Privacy
from gemma_ops.errors import ConfigError, ServiceError
from gemma_ops.gemini.request import Use
from gemma_ops.gemini.transport import client_arguments
from gemma_ops.offline.addresses import loopback_addresses
from gemma_ops.privacy.classes import HERE
from gemma_ops.targets.dialect import Dialect
from gemma_ops.targets.paying import open_bill
from gemma_ops.targets.spec import TargetSpec
from gemma_ops.targets.stream import StreamedReply
from gemma_ops.targets.structured import in_words
from gemma_ops.targets.target import LOCAL, guard_prompts

ATTEMPTS = 4
PAUSE = 0.5
"""Seconds before the second try; doubled for each further one, unless the server names a time."""
_LONGEST_PAUSE = 30.0
_CLASSES = {"any": frozenset({"any"}), "paid": frozenset({"any", "paid"}), "local_only": LOCAL}
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_REFUSED = (400, 422)
"""HTTP statuses with which a server refuses a request's parameters."""
_ABSENT = (408, 425, 429, 503)
"""Statuses among those that say nothing about the question: the server was busy, and may not be later."""


def classes_of(spec: TargetSpec, machine: MachineConfig) -> frozenset[str]:
    """Return the privacy classes that may be sent to an endpoint, without opening it."""
    return _CLASSES[_settings(spec, machine, ours=_ours(spec)).privacy]


def learned_by_endpoint(spec: TargetSpec, machine: MachineConfig) -> Privacy:
    """Return the class of what an endpoint's model learned: as stated, else that of the rows it may see."""
    found = _settings(spec, machine, ours=_ours(spec))
    return found.learned or found.privacy


def _settings(spec: TargetSpec, machine: MachineConfig, *, ours: bool) -> EndpointConfig:
    found = next((item for item in machine.endpoints if item.url.rstrip("/") == spec.place), None)
    return found or EndpointConfig(url=spec.place, privacy="local_only" if ours else "any")


def _ours(spec: TargetSpec) -> bool:
    return bool(loopback_addresses(urlsplit(spec.place).hostname or ""))


class Endpoint:
    """One model behind `<url>/chat/completions`."""

    lockstep = False

    def __init__(self, spec: TargetSpec, machine: MachineConfig, *, run: str = "", use: Use = "evaluate") -> None:
        """Open the endpoint; raises ConfigError when the variable that should hold the key is empty, BudgetError for
        one that costs money in a run without a budget; `run` and `use` say in the ledger who spends and on what."""
        host = urlsplit(spec.place).hostname or ""
        kept_here = client_arguments(spec.place)
        ours = "transport" in kept_here  # one look at the name decides what it may see, and where requests go
        self._settings = _settings(spec, machine, ours=ours)
        self.name, self.family, self.identity = spec.name, spec.family, f"{spec.place}#{spec.model}"
        self.sees = _CLASSES[self._settings.privacy]
        self.learned = self._settings.learned or self._settings.privacy
        self.place = HERE if ours else f"sent: {host}"
        if self._settings.think_blocks == "apart":
            self.identity += " think_blocks=apart"
        self._model, self._dialect = spec.model, Dialect(self._settings)
        headers = {"Content-Type": "application/json"}
        if self._settings.api_key_env:
            key = os.environ.get(self._settings.api_key_env, "").strip()
            if not key:
                raise ConfigError(
                    f"target {spec.name}: the variable {self._settings.api_key_env} is empty",
                    f"export {self._settings.api_key_env}=…, or correct machine.endpoints",
                )
            headers["Authorization"] = f"Bearer {key}"
        self._bill = open_bill(self._settings, machine, f"{spec.model} ({host})", run=run, use=use)
        timeout = httpx2.Timeout(self._settings.timeout_seconds, connect=10.0)
        self._client = httpx2.Client(headers=headers, timeout=timeout, **kept_here)

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]:
        """Send as many at once as a batch holds. Raises BoundaryError, before anything is sent, for what it may not
        see, ServiceError when the server is absent or stays busy, ConfigError when it knows neither key nor model."""
        guard_prompts(self, [prompt for batch in batches for prompt in batch], "what is to be asked")
        pool = ThreadPoolExecutor(max(map(len, batches), default=1), thread_name_prefix=f"answers of {self.name}")
        try:
            sent = [
                [pool.submit(self._ask, self._body(prompt, max_new_tokens, schema)) for prompt in batch]
                for batch in batches
            ]
            for batch in sent:
                yield [future.result() for future in batch]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        self._client.close()
        if self._bill:
            self._bill.close()

    def _body(self, prompt: Prompt, limit: int, schema: dict[str, Any] | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": in_words(prompt.messages, schema) if schema else list(prompt.messages),
            "max_tokens": limit,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if prompt.tools:
            body["tools"] = list(prompt.tools)
        if schema:
            wish = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wish}
        if prompt.repeat:
            body |= {"temperature": 1.0, "seed": prompt.repeat}
        return body

    def _ask(self, body: dict[str, Any]) -> Answer:
        """Return one answer, asked for up to ATTEMPTS times. Seconds are those of the try that was answered."""
        attempt = 0
        while (attempt := attempt + 1) <= ATTEMPTS:
            sent = self._dialect.spell(body)
            held = self._bill.hold(body, int(body["max_tokens"])) if self._bill else 0
            began = time.perf_counter()
            reply, pause, code = StreamedReply(), 0.0, 0
            try:
                with self._client.stream(
                    "POST", f"{self._settings.url.rstrip('/')}/chat/completions", json=sent
                ) as found:
                    code = found.status_code
                    if code == 200:
                        reply.read(found, began)
                    else:
                        found.read()
                        reply.reason, pause = _said(found), _asked_pause(found)
            except httpx2.TransportError as error:
                reply.broke(f"{type(error).__name__}: {error}")
                code = 0 if not reply.chunks else -1
            found_answer = reply.answer(time.perf_counter() - began, self._settings)
            self._settle(held, code, found_answer)
            if code == 200 and reply.end != "error":
                return found_answer
            if code in (401, 403, 404):
                raise ConfigError(f"{self._settings.url} says {code}: {reply.reason}", self._way_out(code))
            if code in _REFUSED:
                if self._dialect.learn(sent, reply.reason):
                    attempt -= 1  # each spelling is learned once, so that this ends
                    continue
                if key := self._dialect.refused(sent, reply.reason):
                    raise ConfigError(
                        f"{self._settings.url} refuses {key}, whatever is asked: {reply.reason}",
                        "see limit_key and temperature of machine.endpoints, or ask a model that takes it",
                    )
            if code > 0 and code != 200 and code not in _AGAIN:
                break
            if attempt < ATTEMPTS:
                time.sleep(min(pause or PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE))
        if code == 0 or code in _ABSENT:
            raise ServiceError(
                f"{self._settings.url} did not answer in {ATTEMPTS} tries: {reply.reason}",
                "start the server or wait for it, then run the same command again: what was answered is kept",
            )
        if code > 0 and code != 200:
            reply.reason = f"{code}: {reply.reason}"
        return reply.answer(time.perf_counter() - began, self._settings)

    def _settle(self, held: int, code: int, answer: Answer) -> None:
        """Settle what was held for a try: a reply is paid by its usage, what broke off in full, a refusal not at
        all."""
        if self._bill is None:
            return
        if code in (200, -1):
            self._bill.pay(held, answer if code == 200 else None)
        else:
            self._bill.give_back(held, answer.reason)

    def _way_out(self, code: int) -> str:
        if code == 404:
            return (
                f"check the address and the model's name {self._model!r} (GET {self._settings.url}/models lists them)"
            )
        if self._settings.api_key_env:
            return f"check the key in {self._settings.api_key_env}"
        return "list the endpoint in machine.endpoints and name the variable that holds its key in api_key_env"


def _said(response: httpx2.Response) -> str:
    """Return the server's own words, shortened: `{"error": {"message": …}}`, or whatever it sent."""
    try:
        body = json.loads(response.text)
        error = body.get("error", body) if isinstance(body, dict) else body
        said = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        said = response.text
    return " ".join(str(said).split())[:300] or "no reason given"


def _asked_pause(response: httpx2.Response) -> float:
    """Return the seconds in `Retry-After`; 0 when there is none (dates are not worth a clock)."""
    try:
        return max(float(response.headers.get("retry-after", "0")), 0.0)
    except ValueError:
        return 0.0
