"""The server's life: start an engine, ask the canary's questions, listen, and end without losing what is under way."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.errors import ConfigError, MachineError
from gemma_ops.planning.serving_plan import check_memory
from gemma_ops.serving.alias_following import AliasFollower
from gemma_ops.serving.announcing import asked_over_http, told
from gemma_ops.serving.app import Front
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.engine import Engine
from gemma_ops.serving.engines import make_engine, memory_for
from gemma_ops.serving.keys import Keys, is_this_machine
from gemma_ops.serving.model import ServedModel
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.replicas import each_engine, several
from gemma_ops.serving.routed_front import open_router
from gemma_ops.serving.served_source import Source, memory_of
from gemma_ops.serving.serving_canary import canary_words, check_canary, recorded_of, run_canary
from gemma_ops.serving.serving_state import ModelService, ServedFacts
from gemma_ops.serving.shadow import Shadow, pairs_file
from gemma_ops.serving.traffic import TrafficRecorder, counted

_DRAIN = 30
"""Seconds that requests under way have when the server ends."""


def serve_source(
    asked: str,
    machine: MachineConfig,
    settings: ServeConfig,
    say: Callable[[str], None],
    *,
    question: str | None = None,
) -> None:
    """Serve until interrupted; with a `question`, until that was asked over HTTP and answered.

    Raises ConfigError, DataError (the question was refused), GateError (the canary failed, or bytes were changed),
    MachineError (the port, memory, or a missing package) and ModelError (the engine refuses the weights).
    """
    keys = Keys.read(Path(settings.keys).expanduser() if settings.keys else None)
    if not keys.needed and not is_this_machine(settings.host):
        raise ConfigError(
            f"serve.host {settings.host} is reached by other machines, and serve.keys is not set",
            "set serve.keys to a file of keys, or listen on 127.0.0.1",
        )
    if settings.certificate and question is not None:
        raise ConfigError("--ask speaks plain HTTP, and serve.certificate is set", "leave one of them out")
    secured = _secured(settings)
    if keys.needed and question is not None:
        raise ConfigError("--ask holds no key, and serve.keys asks for one", "leave one of them out")
    source = open_source(asked, machine, settings)
    check_memory(memory_of(source, settings), memory_for(source, machine, settings), asked)
    listening = _bind(settings)
    try:
        asyncio.run(_run(source, machine, settings, keys, secured, listening, say, question))
    finally:
        listening.close()


async def opened_server(source: Source, machine: MachineConfig, settings: ServeConfig) -> ModelService:
    """Open a service whose engine answers and has passed the canary. The caller stops its engine."""

    def make(threads: int | None) -> Engine:
        return make_engine(source, machine.model_copy(update={"workers": threads}), settings)

    engine = await asyncio.to_thread(several, settings.replicas, machine.workers, make)  # it may ask another Python
    model = served_model(source, engine, settings)
    await engine.start()
    try:
        canary = "nothing was recorded to compare with"
        if recorded := recorded_of(source.canary, source.target):
            canaries = []
            for one in each_engine(engine):
                canaries.append(await run_canary(model.on(one), recorded, source.target))
                if settings.canary == "required":
                    check_canary(canaries[-1], source.asked)
            canary = canary_words(canaries)
    except BaseException:
        await engine.stop()
        raise
    facts = ServedFacts(
        source.asked, source.model, source.version, source.format, engine.name,
        source.verdict.verdict if source.verdict else "", source.gates(), canary, source.sha256, source.answers_class(),
        source.verdict.routing if source.verdict else None, source.drafting.words,
    )  # fmt: skip
    return ModelService(model, facts, queue=settings.queue, seconds=settings.seconds)


def served_model(source: Source, engine: Engine, settings: ServeConfig) -> ServedModel:
    """Return what a source is asked through, in front of an engine that runs its file."""
    thinks = source.prompting is not None and source.prompting.asks_to_think
    both = source.prompting is None or source.prompting.thinking == "mixed"
    return ServedModel(source.tokenizer, engine, thinks=thinks, both=both, usual=settings.max_tokens)


async def _run(
    source: Source,
    machine: MachineConfig,
    settings: ServeConfig,
    keys: Keys,
    secured: dict[str, Any],
    listening: socket.socket,
    say: Callable[[str], None],
    question: str | None,
) -> None:
    router = open_router(machine, settings, budgeted=keys.budgeted)
    try:
        service = await opened_server(source, machine, settings)
    except BaseException:
        if router:
            router.close()
        raise
    share = settings.challenger.share if settings.challenger else 0.0
    deployment = Deployment(service, share=share)
    followers = [] if question is not None else alias_followers(deployment, source, machine, settings, say)
    following: list[asyncio.Task[None]] = []
    shadow = shadow_of(deployment, source, settings)
    traffic = None if question is not None else traffic_of(source, machine, settings, say)
    lanes = router.tally if router else None
    try:
        if traffic:
            await traffic.start(lambda: counted(deployment, lanes))
        front = Front(
            deployment,
            keys=keys,
            also=settings.also_called,
            limit=int(settings.limit_mb * 1e6),
            log=_log if question is None else _no_log,
            nudged=[follower.nudge for follower in followers],
            shadow=shadow,
            router=router,
            traffic=traffic,
            floor=settings.privacy,
        )
        options = uvicorn.Config(
            front.app(), log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_DRAIN,
            server_header=False, ws="none", **secured,
        )  # fmt: skip
        server = _Server(options)
        host, port = listening.getsockname()[:2]
        for line in told(service, f"http{'s' if secured else ''}://{host}:{port}"):
            say(line)
        if router:
            say(router.told())
        following = [asyncio.create_task(follower.follow()) for follower in followers]
        working = asyncio.create_task(server.serve(sockets=[listening]))
        if question is not None:
            say(await asyncio.to_thread(asked_over_http, host, port, service.facts.model, question))
            server.should_exit = True
        await working
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        if shadow:
            await shadow.settled()
        await deployment.stop()
        if traffic:
            await traffic.close(counted(deployment, lanes))
        if router:
            await asyncio.to_thread(router.close)
        tallies = deployment.tallies.values()
        count = sum(sum(tally.requests.values()) for tally in tallies)
        written = sum(tally.reply_tokens + tally.thought_tokens for tally in tallies)
        say(f"{count:,} request{'' if count == 1 else 's'}, {written:,} tokens written")


def alias_followers(
    deployment: Deployment,
    source: Source,
    machine: MachineConfig,
    settings: ServeConfig,
    say: Callable[[str], None],
) -> list[AliasFollower]:
    """Return the followers that keep the version that serves, and the challenger next to it, at their aliases. Raises
    ConfigError for a challenger of something that has no aliases."""
    if not (source.version and "@" in source.asked):
        if settings.challenger:
            raise ConfigError(
                f"serve.challenger needs an alias to challenge, and {source.asked} is none", "serve NAME@ALIAS"
            )
        return []
    found = [AliasFollower(deployment, source.asked, machine, settings, opened_server, say)] if settings.follow else []
    if settings.challenger:
        beside = f"{source.model}@{settings.challenger.alias}"
        found.append(AliasFollower(deployment, beside, machine, settings, opened_server, say, challenges=True))
    return found


def shadow_of(deployment: Deployment, source: Source, settings: ServeConfig) -> Shadow | None:
    """Return what copies requests to the challenger, where the settings ask for it."""
    if not (settings.challenger and settings.challenger.shadow):
        return None
    return Shadow(deployment, pairs_file(source.model, settings.challenger))


def traffic_of(
    source: Source, machine: MachineConfig, settings: ServeConfig, say: Callable[[str], None]
) -> TrafficRecorder | None:
    """Return what reports the traffic to MLflow: of what is registered there, or where traces are asked for. Raises
    ConfigError for traces without an MLflow."""
    if settings.traces != "off" and machine.mlflow is None:
        raise ConfigError(
            "serve.traces goes to MLflow, and machine.mlflow is null", "set machine.mlflow, or leave serve.traces off"
        )
    if settings.traces == "off" and not (source.version and settings.mirror and machine.mlflow):
        return None
    return TrafficRecorder(machine, settings, source.asked, say)


class _Server(uvicorn.Server):
    """uvicorn server that ends on Ctrl-C and on SIGTERM after what is under way, and lets the rest of this process end
    too: uvicorn would send itself the signal again. Where Ctrl-C is ignored, as under nohup, it stays ignored."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        kept = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)


def _bind(settings: ServeConfig) -> socket.socket:
    """Return a listening socket: a port that is taken is reported before a model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((settings.host, settings.port))
    except OSError as error:
        made.close()
        raise MachineError(
            f"can't listen on {settings.host}:{settings.port}: {error.strerror or error}",
            "stop what listens there, or take another port: --set serve.port=0 takes a free one",
        ) from error
    made.listen(1024)
    return made


def _secured(settings: ServeConfig) -> dict[str, Any]:
    """Return uvicorn's settings for HTTPS; none without a certificate. Raises ConfigError for files that hold none."""
    if settings.certificate is None:
        return {}
    files = [str(Path(file).expanduser()) for file in (settings.certificate, settings.certificate_key) if file]
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*files)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"serve.certificate: {' and '.join(files)} hold no certificate with its key: {error.strerror or error}",
            "give PEM files: the certificate's chain, and serve.certificate_key where its key is another file",
        ) from error
    return dict(zip(("ssl_certfile", "ssl_keyfile"), files, strict=False))


def _no_log(record: dict[str, Any]) -> None:
    """Log nothing: of one question nothing needs to be kept."""


def _log(record: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(record) + "\n")
