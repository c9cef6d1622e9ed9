"""Verbs that look and change nothing: plan, data check, doctor, schema; and `init`, which copies files to edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_ops.cli.options import ConfigOption, Configs, Json, Sets, load_config, write_page
from gemma_ops.errors import DataError, OpsError

if TYPE_CHECKING:
    from gemma_ops.config import RunConfig
    from gemma_ops.planning.row_lengths import Counted
    from gemma_ops.prepare.check_result import CheckResult

app = typer.Typer()
data_app = typer.Typer(help="Look at training data before anything is trained on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def plan(
    configs: Configs,
    device: Annotated[
        str | None,
        typer.Option(
            help="A GPU by name, such as a100-40 or rtx-4090; the present device by default.", show_default=False
        ),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Also run one step of the real modules on fake tensors, at true size.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="What serving it takes instead, by format, slots and context.")
    ] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Bytes, speed, hours and dollars of a training, or of serving, before anything is downloaded."""
    from gemma_ops.cli import console
    from gemma_ops.planning import plan as make
    from gemma_ops.planning import plan_lines

    config = load_config(configs, sets, fetches=False)
    if serve:
        from gemma_ops.planning.serving_plan import plan_serving

        served = plan_serving(config, device)
        if as_json:
            console.print_json(served.to_json())
        else:
            print("\n".join(served.lines()))
        return
    result = make(config, device, _counted(config))
    body = result.to_json()
    if not as_json:
        for line in plan_lines(result):
            print(line)
    if simulate:
        from gemma_ops.training.simulate.simulation_report import simulate_plan

        done = simulate_plan(config, result)
        body["simulated"] = done.to_json()
        if not as_json:
            for line in done.lines():
                print(line)
    if as_json:
        console.print_json(body)


def _counted(config: RunConfig) -> Counted | None:
    """Return the tokens of the rows, where they and the tokenizer are here; what can't be read is estimated, and
    reported by data check."""
    from gemma_ops.modeling.checkpoint_source import local_base
    from gemma_ops.prepare.token_counts import count_tokens

    folder = local_base(config.model.base)
    if folder is None or not config.data.path or config.data.hub:
        return None
    try:
        return count_tokens(config, folder)
    except OpsError:
        return None


@data_app.command("check")
def data_check(
    configs: Configs,
    rows: Annotated[int, typer.Option(help="Rows shown token by token.")] = 3,
    first: Annotated[
        int | None, typer.Option(help="Look at the first rows only, and rehearse nothing.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the tokens of every checked row to this HTML file.", show_default=False)
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Show the exact tokens a row becomes, which of them carry loss, and what is wrong with it."""
    from gemma_ops.cli import console
    from gemma_ops.modeling.checkpoint_source import tokenizer_folder
    from gemma_ops.prepare.check_html import check_page
    from gemma_ops.prepare.check_rows import check_source
    from gemma_ops.prepare.check_text import check_lines
    from gemma_ops.recipes import inputs

    config = load_config(configs, sets)
    folder = tokenizer_folder(config.model)
    result = check_source(
        config.data,
        source=inputs.data_source(config.data),
        model=folder,
        tasks=inputs.every_task(config),
        limit=first,
        max_length=config.train.max_length,
        thinking=config.train.thinking,
        loss_on=config.train.loss_on,
    )
    if first is None:
        result = result.refusing(*_refused_later(config, result))
    if html:
        write_page(html, check_page(result))
    if as_json:
        console.print_json(result.to_json())
        raise typer.Exit(DataError.exit_code if result.refusals else 0)
    for shown in result.rows[:rows]:
        console.out().print(f"{shown.id}  {shown.source}", markup=False, style="bold")
        for tokens in (shown.tokens, *shown.more):
            console.out().print(console.coloured_tokens(tokens))
        console.out().print()
    for line in check_lines(result):
        print(line)
    if html:
        print(f"tokens of {len(result.rows)} rows: {html}")
    if result.refusals:
        raise typer.Exit(DataError.exit_code)


def _refused_later(config: RunConfig, result: CheckResult) -> list[tuple[str, str]]:
    """Return what the steps up to the training would refuse besides the rows themselves."""
    from gemma_ops.recipes import preflight
    from gemma_ops.recipes.finding import find_recipe

    found = []
    try:
        preflight.check_ahead(config, find_recipe(config.recipe), until="train")
    except OpsError as error:
        found.append((error.what, error.fix))
    train, trained = config.train, result.trained
    if trained and not result.lengths["tokens_with_loss"]:
        found.append(("no row carries loss", "raise train.max_length, or give rows with answers"))
    elif trained and (refusal := train.warm_up_alone(trained[train.thinking], trained["tokens"])):
        found.append(refusal)
    return found


@app.command()
def init(
    configs: Annotated[list[str], typer.Argument(help="Shipped configuration to start from.", show_default=False)],
    folder: Annotated[Path, typer.Option("--to", help="Folder to write into.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Copy a configuration with its recipe and tasks into your own folder, to edit them there."""
    from gemma_ops.cli.eject import eject

    for path in eject(configs, folder, force=force):
        print(path)


@app.command()
def doctor(
    name: Annotated[
        str | None, typer.Argument(help="Explain one known-bad combination, with its evidence.", show_default=False)
    ] = None,
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Versions, devices, what each Gemma 4 size can do here, and combinations known to go wrong."""
    from gemma_ops.cli import console
    from gemma_ops.family.explain_trap import explain_trap
    from gemma_ops.planning.doctor import examine

    if name:
        print("\n".join(explain_trap(name)))
        return
    report = examine(load_config(configs or [], sets, fetches=False).serve.vllm_python)
    if as_json:
        console.print_json(report.to_json())
    else:
        for line in report.lines():
            print(line)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, so that an editor can complete the YAML."""
    from gemma_ops.cli import console
    from gemma_ops.config.loading import config_schema as make

    console.print_json(make())
