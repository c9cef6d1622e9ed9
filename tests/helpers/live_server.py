"""A live server for tests: nano behind the real routes, on a free port of this machine, in a thread.

with serving(files / "q8_0" / "model.gguf") as live: …  # live.url, live.service, live.engine
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvicorn

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.export import quantizing
from gemma_ops.nano import WEIGHTS
from gemma_ops.serving.app import Front
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.keys import Keys
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.routed_front import open_router
from gemma_ops.serving.server import alias_followers, opened_server, shadow_of, traffic_of
from gemma_ops.serving.traffic import counted
from tests.helpers import patience
from tests.helpers import registry_runs as runs
from tests.helpers.once import once

NAME = "nano"
FORMATS = ("bf16", "q8_0", "q4_0")


def make_files(folder):
    """nano as GGUF, in all formats: folder/<format>/model.gguf, with how it was trained beside it."""
    made = once("gguf", _convert)
    for form in FORMATS:
        shutil.copytree(made / form, folder / form)
    return folder


def _convert(folder):
    quantizing.write_formats(
        folder, quantizing.MergedCheckpoint(WEIGHTS), list(FORMATS), 1, dict.fromkeys(FORMATS, "any")
    )
    template = (WEIGHTS / "chat_template.jinja").read_text()
    for form in FORMATS:
        write_prompting(folder / form, Prompting.of("off", template))


@dataclass
class Live:
    url: str
    deployment: Any
    loop: Any
    records: list
    source: Any
    given: Any
    said: list
    router: Any = None

    @property
    def service(self):
        return self.deployment.current

    @property
    def engine(self):
        return self.service.model.engine

    def done(self, work):
        """What a coroutine gives, run in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)


@contextmanager
def serving(
    asked,
    *,
    keys=None,
    also=("gemini-3.8-flash",),
    recorded=None,
    machine=None,
    gemini=None,
    form="q8_0",
    mlflow=None,
    **settings,
):
    """The server as the verb starts it, without its own process: of a GGUF file, of a FOLDER or ADAPTER@FOLDER, or of
    what is registered in the MLflow of `machine`. `gemini` is the machine whose Gemini the model `auto` may be sent to,
    `mlflow` where its traffic is filed."""
    given = ServeConfig.model_validate({"port": 0, "slots": 2, "context": 256, "queue": 4, "mirror": 0} | settings)
    if machine:
        source = open_source(asked, machine, given)
    else:
        machine = MachineConfig()
        plain = str(asked).endswith(".gguf")
        source = open_source(f"{asked}@{WEIGHTS}" if plain else str(asked), machine, given)
        source = replace(source, model=NAME, canary=recorded, format=form if plain else source.format)
    ready, made, failed, said = threading.Event(), {}, [], []

    async def run():
        service = await opened_server(source, machine, given)
        records = []
        deployment = Deployment(service, share=given.challenger.share if given.challenger else 0.0)
        followers = alias_followers(deployment, source, machine, given, said.append)
        nudged = [follower.nudge for follower in followers]
        router = open_router(gemini or machine, given, budgeted=bool(keys and keys.budgeted))
        place = machine.model_copy(update={"mlflow": str(mlflow)}) if mlflow else machine
        traffic = traffic_of(source, place, given, said.append)
        lanes = router.tally if router else None
        if traffic:
            await traffic.start(lambda: counted(deployment, lanes))
        front = Front(
            deployment, keys=keys or Keys(), also=also, limit=1_000_000, log=records.append, nudged=nudged,
            shadow=shadow_of(deployment, source, given),
            router=router, traffic=traffic, floor=given.privacy,
        )  # fmt: skip
        following = [asyncio.create_task(follower.follow()) for follower in followers]
        loop = asyncio.get_running_loop()
        options = uvicorn.Config(front.app(), log_config=None, lifespan="off", timeout_graceful_shutdown=5, ws="none")
        server = uvicorn.Server(options)
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        made.update(server=server, live=Live(url, deployment, loop, records, source, given, said, router))
        ready.set()
        try:
            await server.serve(sockets=[listening])
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            await deployment.stop()
            if traffic:
                await traffic.close(counted(deployment, lanes))
            if router:
                await asyncio.to_thread(router.close)

    def work():
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    patience.until(ready.is_set, 60)
    if failed:
        raise failed[0]
    try:
        yield made["live"]
    finally:
        made["server"].should_exit = True
        assert patience.joined(thread, 30)


def record(path, rows):
    """A canary's file."""
    path.write_text(json.dumps({"schema": "gemma-ops/canary@1", "rows": rows}))
    return path


def register(root, files, which, **changes):
    """Register a version of support-nano in `root` whose q8_0 file is that of `files`/`which`; returns its machine."""

    def fetch(out, settings, machine):
        done = runs.fetch(out, settings, machine)
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(WEIGHTS / name, out / "weights" / name)
        return done

    def quantize(out, settings, machine, *, base, adapter):
        done = runs.quantize(out, settings, machine, base=base, adapter=adapter)
        shutil.copyfile(files / which / "model.gguf", out / "q8_0" / "model.gguf")
        shutil.copytree(files / "q8_0", out / "q8_0", ignore=shutil.ignore_patterns("*.gguf"), dirs_exist_ok=True)
        return done

    config = runs.config(root, serve={"format": "q8_0"}, **changes)
    runs.make(config, steps={"fetch": fetch, "quantize": quantize})
    return config.machine
