"""Verbs about the router: `route explain` decides one request, `route check` a policy's own examples, `route replay`
a log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemma_ops.cli.options import ConfigOption, Json, Sets, load_config
from gemma_ops.family.formats import DEFAULT_FORMATS

_USUAL = DEFAULT_FORMATS[0]
app = typer.Typer()
route_app = typer.Typer(help="Where requests are answered: here, by Gemini, or not at all.", no_args_is_help=True)
app.add_typer(route_app, name="route")
Privacy = Literal["local_only", "paid", "any"]
PolicyOption = Annotated[str, typer.Option("--policy", help="A file, or a shipped policy's name.")]


@route_app.command("explain")
def explain(
    file: Annotated[
        Path | None,
        typer.Argument(help="A request as JSON in either protocol, or its text; - reads it.", show_default=False),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="The request's text.", show_default=False)] = None,
    policy: PolicyOption = "default",
    privacy: Annotated[Privacy | None, typer.Option(help="Privacy class that it declares.", show_default=False)] = None,
    task: Annotated[str, typer.Option(help="Task that it declares.", show_default=False)] = "",
    slices: Annotated[
        list[str] | None, typer.Option("--slice", metavar="NAME=VALUE", help="A slice of it.", show_default=False)
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="The version's routing.json.", metavar="FILE", show_default=False)
    ] = None,
    served: Annotated[str, typer.Option(help="The format that is served, as routing.json names it.")] = _USUAL,
    shows: Annotated[
        list[str] | None,
        typer.Option(
            "--shows", metavar="KIND", help="It shows an image, audio, video or document.", show_default=False
        ),
    ] = None,
    tools: Annotated[
        list[str] | None, typer.Option("--tool", help="A service's tool: search, code, url.", show_default=False)
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens of its prompt; by default a quarter of its characters.", show_default=False),
    ] = None,
    reply: Annotated[int, typer.Option(min=1, help="Tokens of the reply.")] = 500,
    down: Annotated[bool, typer.Option("--down", help="As if the local engine were away.")] = False,
    waiting: Annotated[int, typer.Option(min=0, help="As if this many requests waited here.")] = 0,
    left: Annotated[
        float | None, typer.Option(min=0, help="As if this many dollars were left.", show_default=False)
    ] = None,
    learned: Annotated[
        Privacy, typer.Option(help="The class of the rows that the local model learned from, where it spoke before.")
    ] = "local_only",
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Say where a request would be answered, and why; nothing is sent."""
    from gemma_ops.cli import console
    from gemma_ops.routing.explain_decision import Supposed, explain_request

    config = load_config(configs or [], sets, fetches=False)
    supposed = Supposed(
        privacy=privacy, task=task, slices=tuple(slices or ()), evidence=evidence, served=served,
        shows=tuple(shows or ()), tools=tuple(tools or ()), tokens=tokens,
        reply=reply, up=not down, waiting=waiting, left=left, learned=learned,
    )  # fmt: skip
    found = explain_request(policy, file, text, supposed, config.machine, config.serve.context)
    if as_json:
        console.print_json(found.to_json())
        return
    for line in found.lines():
        print(line)


@route_app.command("check")
def check_policy(
    policy: Annotated[str, typer.Argument(help="A file, or a shipped policy's name.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Decide a policy's own probes, and fail where one ends in another lane."""
    from gemma_ops.cli import console
    from gemma_ops.errors import GateError
    from gemma_ops.routing.policy_probes import check_probes
    from gemma_ops.routing.routing_policy import load_policy

    found = load_policy(policy)
    results = check_probes(found)
    if as_json:
        console.print_json(
            [{"name": one.probe.name, "passed": one.passed, **one.decision.to_json()} for one in results]
        )
    else:
        for one in results:
            print(one.words)
    bad = [one for one in results if not one.passed]
    if bad:
        raise GateError(
            f"{len(bad)} of {len(results)} probes fail; the first is {bad[0].probe.name!r}",
            "correct the policy, or the probe if it asks for the wrong thing",
        )
    if not as_json:
        print(f"{len(results)} probes hold; policy {found.digest[:12]}")


@route_app.command("replay")
def replay(
    log: Annotated[Path, typer.Argument(help="A log of decisions (serve.routing_log).", show_default=False)],
    policy: PolicyOption = "default",
    as_json: Json = False,
) -> None:
    """Say what another policy would have cost over a log, sent out and refused."""
    from gemma_ops.cli import console
    from gemma_ops.routing.decision_log import read_log
    from gemma_ops.routing.replay import replay_log as again
    from gemma_ops.routing.routing_policy import load_policy

    found = again(read_log(log), load_policy(policy))
    if as_json:
        console.print_json(found.to_json())
        return
    for line in found.lines():
        print(line)
