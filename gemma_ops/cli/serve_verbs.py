"""Verbs that answer: `serve` before real clients, `chat` in the terminal; and `pull`, which brings what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemma_ops.cli.options import ConfigOption, Json, Sets, load_config

app = typer.Typer()
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="NAME@ALIAS or NAME/VERSION of MLflow, a run's name, a folder that `pull` made, FILE.gguf@FOLDER with the "
        "tokenizer's folder, the FOLDER of a checkpoint, or ADAPTER@FOLDER with its base's.",
        show_default=False,
    ),
]


@app.command()
def serve(
    source: Source,
    ask: Annotated[
        str | None,
        typer.Option(
            "--ask", metavar="TEXT", help="Ask this over HTTP, print the answer, and end.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare the challenger with the version that serves, on what a shadow kept."),
    ] = False,
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Serve a version to OpenAI's and Gemini's clients, once it answers as it was evaluated."""
    from gemma_ops.cli import console
    from gemma_ops.offline import guard

    config = load_config(configs or [], sets, listens=not compare)
    if compare:
        from gemma_ops.serving.comparing import compare_model

        found = compare_model(source, config.serve)
        if as_json:
            console.print_json(found.to_json())
        else:
            print("\n".join(found.lines()))
        return
    from gemma_ops.serving.server import serve_source as run

    if guard.active():
        print(f"offline is held by {guard.held_by()}")
    run(
        source,
        config.machine,
        config.serve,
        lambda line: console.out().print(line, markup=False, soft_wrap=True),
        question=ask,
    )


@app.command()
def chat(
    source: Source,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="Ask once, print the answer, and end.", show_default=False),
    ] = None,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="The system turn.", show_default=False)] = "",
    versus: Annotated[
        str | None,
        typer.Option("--versus", metavar="SOURCE", help="Ask this one too, side by side.", show_default=False),
    ] = None,
    configs: ConfigOption = None,
    sets: Sets = None,
) -> None:
    """Talk to a version in the terminal, asked exactly as it was evaluated."""
    from gemma_ops.serving.chatting import ask_once, converse

    config = load_config(configs or [], sets)
    sources = [source, *([versus] if versus else [])]
    if prompt is not None:
        ask_once(sources, prompt, system, config.machine, config.serve)
    else:
        converse(sources, system, config.machine, config.serve)


@app.command()
def pull(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="NAME@ALIAS or NAME/VERSION of MLflow.", show_default=False)
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the copy goes.", show_default=False)],
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="FORMAT", help="Copy only the weights of this format.", show_default=False),
    ] = None,
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Copy a registered version into a folder, every byte compared with what was registered."""
    from gemma_ops.cli import console
    from gemma_ops.registry.fetching import only_format, pull_version

    machine = load_config(configs or [], sets).machine
    wanted = only_format(only) if only else None
    done = pull_version(machine, source, to, wanted=wanted)
    files = {name: file for name, file in done.manifest["subject"]["files"].items() if wanted is None or wanted(name)}
    size = sum(file["bytes"] for file in files.values())
    if as_json:
        body = {"name": done.name, "version": done.version, "folder": str(done.folder), "files": len(files)}
        console.print_json(body | {"bytes": size})
        return
    print(
        f"{done.name} version {done.version}: {len(files)} files, {size:,} bytes, each as registered, in {done.folder}"
    )
    print(f"{done.folder / 'README.md'} says how each is loaded")
