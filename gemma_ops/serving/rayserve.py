"""The server as a Ray Serve application: replicas that are each a whole server with an engine of its own, and a front
that hands them requests.

    applications:
      - name: support
        import_path: gemma_ops.serving.rayserve:app
        args: {source: support-nano/3, configs: [serve.yaml], sets: [serve.replicas=2]}

`serve.replicas` are spread over the cluster. A replica is healthy once its engine has answered as the evaluation
recorded. An alias is looked up when the application is deployed; to follow it, deploy again: Ray exchanges one replica
after the other, and each answers from prompt to last token by one version. Where the new one's canary fails, those that
were not yet exchanged serve on: with a single replica nobody, since Ray ends the old one first. Queue, counts, and
keys' rates and budgets are each replica's own. Other machines are let in with `serve.keys` only, whatever Ray listens
on.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import ray.exceptions
from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.applications import Starlette
from starlette.routing import Mount

from gemma_ops.config import MachineConfig, RunConfig, ServeConfig, loading
from gemma_ops.errors import ConfigError, OpsError
from gemma_ops.offline import guard
from gemma_ops.planning.serving_plan import check_memory
from gemma_ops.serving.app import Front
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.engine import EngineGoneError
from gemma_ops.serving.engines import memory_for
from gemma_ops.serving.keys import Keys
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.relay import Message, Relay, run_app
from gemma_ops.serving.routed_front import open_router
from gemma_ops.serving.served_source import Source, memory_of
from gemma_ops.serving.server import opened_server, traffic_of
from gemma_ops.serving.traffic import counted

_DRAIN = 30.0
"""Seconds that requests under way have when a replica ends."""
_HEALTH = 2.0
"""Seconds between two looks at a replica's health."""
_TRIES = 3
"""Starts of a replica that doesn't come up, before the deployment has failed."""
SERVERS = "server"
"""Name of the deployment whose replicas hold an engine each."""
_BESIDE = 1000
"""Requests that a replica holds beyond those that it answers or lets wait: looks at health and pages, and what it
refuses by itself, with 429."""


class RayServeArguments(BaseModel):
    """What an application is made from, as `args` of a Serve configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """Source, as for `gemma-ops serve`."""
    configs: tuple[str, ...] = ()
    """Configuration files, or shipped names."""
    sets: tuple[str, ...] = ()
    """Values `key=value`, over the files."""


def app(args: dict[str, Any]) -> Any:
    """Build the application of a source, for Serve's `import_path` or `serve.run`; `args` are `RayServeArguments`.

    Raises ConfigError for other arguments and for settings that a cluster can't keep, and what looking an alias up
    raises.
    """
    try:
        given = RayServeArguments.model_validate(args)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(
            f"the application's args: {wrong}", "give source, and configs and sets where needed"
        ) from None
    config = loading.read_run_config(list(given.configs), list(given.sets))
    if config.serve.challenger:
        raise ConfigError("serve.challenger is for one machine's server", "deploy a second application next to it")
    if config.serve.certificate:
        raise ConfigError("serve.certificate is for one machine's server", "let the cluster's ingress speak HTTPS")
    asked = resolve_alias(given.source, config.machine)
    return bind_app(asked, config)


def bind_app(asked: str, config: RunConfig) -> Any:
    """Bind the deployments of a fixed source to each other."""
    settings, machine = config.serve, config.machine
    environment = {"runtime_env": {"env_vars": guard.ENVIRONMENT}} if config.offline else {}
    room = settings.slots + settings.queue + _BESIDE
    servers = serve.deployment(
        name=SERVERS,
        num_replicas=settings.replicas,
        max_ongoing_requests=room,
        max_constructor_retry_count=settings.replicas + _TRIES,
        health_check_period_s=_HEALTH,
        graceful_shutdown_timeout_s=_DRAIN,
        ray_actor_options={"num_cpus": machine.workers or 1, **environment},
    )(ServerReplica).bind(asked, machine, settings)
    return serve.deployment(
        name="front",
        max_ongoing_requests=settings.replicas * room,
        graceful_shutdown_timeout_s=_DRAIN,
        ray_actor_options={"num_cpus": 0, **environment},
    )(serve.ingress()(FrontReplica)).bind(settings, servers)


def resolve_alias(asked: str, machine: MachineConfig) -> str:
    """Return NAME/VERSION for NAME@ALIAS, so that a replica that starts tomorrow serves what the others serve; anything
    else as it is. Raises OpsError where the alias isn't set."""
    from gemma_ops.registry.fetching import is_version
    from gemma_ops.registry.moving import opened_registry, promoted_version

    if "@" not in asked or ".gguf@" in asked or not is_version(asked):
        return asked
    name, _, alias = asked.partition("@")
    with opened_registry(machine, name) as tracking:
        number = promoted_version(tracking, name, alias)
    if number is None:
        raise OpsError(f"{name} has no alias {alias!r}", f"set it: gemma-ops promote {name} --to {alias}")
    return f"{name}/{number}"


class ServerReplica:
    """The whole server of one machine without a socket of its own; it is ready once its engine has answered as was
    evaluated. The engine ends with the process."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, asked: str, machine: MachineConfig, settings: ServeConfig
    ) -> None:
        keys = _keys(settings)
        source = await asyncio.to_thread(_opened_alone, asked, machine, settings)
        one = settings.model_copy(update={"replicas": 1})
        check_memory(memory_of(source, one), memory_for(source, machine, one), asked)
        self._service = await opened_server(source, machine, one)
        deployment, router = Deployment(self._service), open_router(machine, settings, budgeted=keys.budgeted)
        traffic = traffic_of(source, machine, settings, lambda line: _log({"told": line}))
        if traffic:
            await traffic.start(lambda: counted(deployment, router.tally if router else None))
        self._front = Front(
            deployment, keys=keys, also=settings.also_called, limit=int(settings.limit_mb * 1e6), log=_log,
            router=router, traffic=traffic, floor=settings.privacy,
        )  # fmt: skip
        self._app = self._front.app()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """Yield what the server sends to one request."""
        async with aclosing(run_app(self._app, scope, body)) as messages:
            async for message in messages:
                yield message

    def check_health(self) -> None:
        """Raise where the engine is gone. It starts itself again; where it isn't there at three looks, Ray starts
        another replica."""
        engine = self._service.model.engine
        if not engine.alive():
            raise RuntimeError(f"{engine.name} is not there")


class FrontReplica:
    """The replica that clients reach: it hands requests to servers, and starts in seconds, whatever they serve."""

    def __init__(self, settings: ServeConfig, servers: Any) -> None:
        self._servers, self._limit, self._keyed = servers, int(settings.limit_mb * 1e6), settings.keys is not None

    async def _asked(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message]:
        messages = self._servers.answer.options(stream=True).remote(scope, body)
        try:
            async for message in messages:
                yield message
        except ray.exceptions.RayTaskError:
            raise  # a defect of ours: Ray logs it, and answers 500
        except (ray.exceptions.RayError, RayServeException) as error:
            raise EngineGoneError("the replica that answered has ended", "send the request again") from error
        finally:
            messages.cancel()

    def __serve_build_asgi_app__(self) -> Any:
        return Starlette(routes=[Mount("/", app=Relay(self._asked, self._limit, reachable=self._keyed))])


def _keys(settings: ServeConfig) -> Keys:
    return Keys.read(Path(settings.keys).expanduser() if settings.keys else None)


def _opened_alone(asked: str, machine: MachineConfig, settings: ServeConfig) -> Source:
    """Open the source, pulled by one process of this machine at a time, since they share a cache."""
    with _only_one():
        return open_source(asked, machine, settings)


@contextmanager
def _only_one() -> Iterator[None]:
    from gemma_ops.registry.fetching import cache

    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "pulling.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _log(record: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(record | {"process": os.getpid()}) + "\n")
