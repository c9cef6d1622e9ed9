"""A version as MLflow's own tools load it: `mlflow.pyfunc.load_model("models:/NAME@champion")`, `mlflow models serve`.

The version is compared with its manifest, its engine started and its canary heard, as `serve` does it; then `predict`
answers. Nothing in the version is run.

predict({"messages": […], "max_tokens": …})       a chat completion as OpenAI's protocol words it
predict(["…", "…"])                               one answer to each question, in order
predict(DataFrame with a column messages, prompt or its only one)  likewise
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import secrets
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.config.tree import ConfigTree
from gemma_ops.errors import ConfigError, MachineError, OpsError
from gemma_ops.planning.serving_plan import check_memory
from gemma_ops.registry.flavor import mlflow_refusal
from gemma_ops.serving.copied import open_copy
from gemma_ops.serving.engines import memory_for
from gemma_ops.serving.openai_front import whole_chat
from gemma_ops.serving.served_source import memory_of
from gemma_ops.serving.server import opened_server
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.openai import read_chat

_COLUMNS = ("messages", "prompt")
_Found = TypeVar("_Found")


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedVersion:
    """Load a version for MLflow, which calls this with its folder and what was configured: keys of `serve` (`format`,
    `slots`, `context`, `max_tokens`, `canary`), and `trusted_keys` as in `machine`.

    Raises ConfigError, DataError, GateError, MachineError and ModelError as `serve` does.
    """
    given = dict(model_config or {})
    keys = given.pop("trusted_keys", None) or []
    settings = _settings(given)
    source = open_copy(Path(path), settings, [str(key) for key in keys])
    machine, loop = MachineConfig(), _Loop()
    try:
        check_memory(memory_of(source, settings), memory_for(source, machine, settings), source.model)
        service = loop.result(opened_server(source, machine, settings))
    except BaseException:
        loop.end()
        raise
    return ServedVersion(service, loop)


def _settings(given: dict[str, Any]) -> ServeConfig:
    try:
        return ServeConfig.model_validate(given)
    except ValidationError as error:
        lines = [ConfigTree(ServeConfig).explain(one, {}) for one in error.errors()]
        raise ConfigError(f"model_config: {'; '.join(lines)}", "correct it; its keys are those of serve") from error


class ServedVersion:
    """A version that answers. `close` ends its engine; otherwise that ends with this process."""

    def __init__(self, service: ModelService, loop: _Loop) -> None:
        self._service, self._loop = service, loop
        atexit.register(self.close)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Answer one conversation as OpenAI's protocol does, or each question of a list or a DataFrame with a text.

        `params` are fields of OpenAI's chat completions (`temperature`, `max_tokens`, `response_format`, …). Raises
        MlflowException for what is refused, which MLflow's server answers with 400.
        """
        try:
            # MLflow gives every parameter that nobody set as None, which must not hide what the conversation says.
            given = {name: value for name, value in (params or {}).items() if value is not None}
            if isinstance(data, Mapping) and "messages" in data:
                return self._loop.result(self._whole({**data, **given}))
            asks = [self._read({**given, "messages": turns}) for turns in _conversations(data)]
            return self._loop.result(self._texts(asks))
        except RefusalError as refusal:
            raise mlflow_refusal(refusal.message) from refusal
        except OpsError as error:
            raise mlflow_refusal(f"{error.what}; {error.fix}") from error

    def close(self) -> None:
        """Stop the engine; a second time does nothing."""
        atexit.unregister(self.close)
        if self._loop.here and not self._loop.ended:  # the copy in a forked process owns no engine
            self._loop.result(self._service.model.engine.stop())
            self._loop.end()

    def _read(self, body: dict[str, Any]) -> Ask:
        return read_chat({"model": self._service.facts.model} | body)

    async def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        ask = self._read(body)
        if ask.stream:
            raise RefusalError("predict answers whole: leave stream out", field="stream")
        return dict((await whole_chat(self._service, ask, secrets.token_hex(12)))[0])

    async def _texts(self, asks: list[Ask]) -> list[str]:
        """Answer as many at once as there are slots: the queue is for callers, and this is one."""
        room = asyncio.Semaphore(self._service.model.engine.slots)

        async def one(ask: Ask) -> str:
            async with room:
                return (await self._service.reply(ask)).text

        return list(await asyncio.gather(*map(one, asks)))


class _Loop:
    """Event loop in a thread of its own: MLflow calls from threads of its own, and the engine lives in one loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gemma-ops-pyfunc", daemon=True)
        self._thread.start()
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """True if its thread is in this process: a fork leaves it behind."""
        return self._process == os.getpid()

    @property
    def ended(self) -> bool:
        return self._loop.is_closed()

    def result(self, work: Coroutine[Any, Any, _Found]) -> _Found:
        """Run a coroutine and return its result, waited for in the calling thread. Raises MachineError where the loop
        doesn't run."""
        if self.ended or not self.here:
            work.close()
            why = "was closed" if self.here else "was loaded before this process was forked from its own"
            raise MachineError(
                f"this version {why}, and its engine doesn't answer here", "load it again in this process"
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _conversations(data: Any) -> list[Any]:
    """Return the turns of each conversation that is asked: of a text, a list, or a table's column."""
    if hasattr(data, "columns"):
        names = [str(name) for name in data.columns]
        name = next((name for name in _COLUMNS if name in names), names[0] if len(names) == 1 else None)
        if name is None:
            raise RefusalError(
                f"the table has the columns {', '.join(names) or 'none'}: name the one to answer messages or prompt",
                field="messages",
            )
        data = data[name].tolist()
    elif isinstance(data, str | Mapping):
        data = [data]
    if not isinstance(data, list | tuple):
        try:
            data = data.tolist()  # an array
        except AttributeError:
            raise RefusalError(
                f"{type(data).__name__} is nothing to answer: give messages, texts or a table", field="messages"
            ) from None
    return [_turns(item) for item in data]


def _turns(item: Any) -> Any:
    if isinstance(item, Mapping):
        for name in _COLUMNS:
            if name in item:
                return _turns(item[name])
    if isinstance(item, str) and item.lstrip().startswith("[{"):
        with contextlib.suppress(ValueError):  # a table's cell may hold turns as JSON
            item = json.loads(item)
    return [{"role": "user", "content": item}] if isinstance(item, str) else item
