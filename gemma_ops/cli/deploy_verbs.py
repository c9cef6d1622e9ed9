"""The verb that writes a version's deployment as text: `deploy render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemma_ops.cli.options import ConfigOption, Sets, load_config, write_page

app = typer.Typer()
deploy_app = typer.Typer(help="Serve a version elsewhere.", no_args_is_help=True)
app.add_typer(deploy_app, name="deploy")


@deploy_app.command("render")
def render_deployment(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="NAME@ALIAS or NAME/VERSION of MLflow.", show_default=False)
    ],
    form: Annotated[
        Literal["kubernetes", "compose", "systemd", "rayservice", "kserve", "vllm", "vllm-lora", "ollama"],
        typer.Option("--as", help="What will serve it.", show_default=False),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="Write it there instead of printing it.", show_default=False),
    ] = None,
    configs: ConfigOption = None,
    sets: Sets = None,
) -> None:
    """Print what serves a version elsewhere, pinned by number and digest, with how its bytes come there."""
    from gemma_ops.cli import console
    from gemma_ops.serving.render import FORMS, deployed
    from gemma_ops.serving.render.vllm import lay_adapter

    config, target = load_config(configs or [], sets), FORMS[form]
    job = deployed(source, config, wants=target.wants)
    text = target.text(job)
    if job.answers == "local_only":
        console.notice(f"{job.source} learned rows that may not leave your machines: serve it on those only")
    if to is None:
        print(text, end="")
        return
    to.mkdir(parents=True, exist_ok=True)
    file = to / target.file.format(title=job.title)
    write_page(file, text)
    if form == "vllm-lora":
        lay_adapter(job, config.machine, to)
    print(f"{job.source} ({job.form}, sha256 {job.sha256[:12]}) as {form}: {file}")
