"""Verbs for training beyond one machine: `launch render` writes a cluster's job, `launch join` lends this machine to
one."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from gemma_ops.cli.options import Configs, Sets, load_config

app = typer.Typer()
launch_app = typer.Typer(help="Train on several machines.", no_args_is_help=True)
app.add_typer(launch_app, name="launch")


@launch_app.command("render")
def render(
    configs: Configs,
    form: Annotated[
        Literal["torchrun", "ray", "skypilot", "slurm", "kubeflow"],
        typer.Option("--as", help="What the job is written for.", show_default=False),
    ],
    sets: Sets = None,
    whole: Annotated[bool, typer.Option("--whole", help="Run the whole recipe, not only as far as training.")] = False,
) -> None:
    """Print the job that trains a configuration on a cluster, with what `gemma-ops plan` says it needs."""
    from gemma_ops.cli import console
    from gemma_ops.training.launch.render import FORMATS, outside, rendering

    config = load_config(configs, sets, fetches=False)
    job = rendering(config, configs, sets or (), verb="run" if whole else "train")
    for path in outside(job.configs):
        console.notice(f"{path} lies outside this folder: the job would not find it")
    if job.fits != "yes":
        console.notice(job.about()[0])
    print(FORMATS[form](job), end="")


@launch_app.command("join")
def join(configs: Configs, sets: Sets = None) -> None:
    """Lend this machine's processes to a training that another machine runs."""
    from gemma_ops.cli import console
    from gemma_ops.training.launch.join import join_training as take_part

    take_part(load_config(configs, sets), say=console.notice)
