"""Verbs about tools with an environment of their own: install one, fill a wheelhouse for it, see which are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemma_ops.cli.options import ConfigOption, Json, Sets, load_config

app = typer.Typer()
tools_app = typer.Typer(
    help="Tools whose versions don't go together with ours, each in an environment of its own.", no_args_is_help=True
)
app.add_typer(tools_app, name="tools")
ToolName = Annotated[str, typer.Argument(metavar="TOOL", help="llm-compressor or litert.", show_default=False)]


@tools_app.command("install")
def install(
    name: ToolName,
    wheelhouse: Annotated[
        Path | None,
        typer.Option(help="Take every distribution from this folder, and nothing from a network.", show_default=False),
    ] = None,
    configs: ConfigOption = None,
    sets: Sets = None,
) -> None:
    """Make the environment of a tool from the versions shipped with gemma-ops."""
    from gemma_ops.cli import console
    from gemma_ops.toolenvs.install_tool import find_tool, install_tool
    from gemma_ops.toolenvs.tool_list import named_tool

    tool, machine = named_tool(name), load_config(configs or [], sets, fetches=False).machine
    found = find_tool(tool, machine)
    if not found.installed:
        console.notice(f"some minutes, up to {tool.bytes / 1e9:.0f} GB; what pip says is in {found.folder}.log")
    print(f"{tool.name} is in {install_tool(tool, machine, wheelhouse=wheelhouse).folder}")


@tools_app.command("wheelhouse")
def wheelhouse(
    name: ToolName,
    folder: Annotated[Path, typer.Argument(help="Folder that gets the wheels.", show_default=False)],
) -> None:
    """Fill a folder from which a tool is installed where there is no network."""
    from gemma_ops.toolenvs.install_tool import fill_wheelhouse
    from gemma_ops.toolenvs.tool_list import named_tool

    count = fill_wheelhouse(named_tool(name), folder)
    print(f"{count} wheels in {folder}; there: gemma-ops tools install {name} --wheelhouse {folder}")


@tools_app.command("edge-graphs")
def edge_graphs(
    model: Annotated[str, typer.Argument(help="Folder of the base, or nano.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Folder that gets the graphs.", show_default=False)],
    context: Annotated[int, typer.Option(min=256, help="Tokens of a conversation: quantize.edge_context.")] = 4096,
    configs: ConfigOption = None,
    sets: Sets = None,
) -> None:
    """Convert a base to float graphs for LiteRT-LM once, on a machine with the memory for it."""
    from gemma_ops.export.edge_graphs import make_base_graphs

    machine = load_config(configs or [], sets, fetches=False).machine
    make_base_graphs(model, folder, machine, context=context)
    print(f"float graphs of {model} in {folder}: --set quantize.edge_graphs={folder}")


@tools_app.command("list")
def list_installed(configs: ConfigOption = None, sets: Sets = None, as_json: Json = False) -> None:
    """Show the tools, what each is for, and whether it is installed."""
    from gemma_ops.cli import console
    from gemma_ops.toolenvs.install_tool import list_tools

    found = list_tools(load_config(configs or [], sets, fetches=False).machine)
    if as_json:
        rows = [
            {"tool": each.tool.name, "installed": each.installed, "folder": str(each.folder), "lock": each.tool.digest}
            for each in found
        ]
        console.print_json(rows)
        return
    for each in found:
        where = f"in {each.folder}" if each.installed else f"not installed: gemma-ops tools install {each.tool.name}"
        print(f"{each.tool.name:15} {each.tool.purpose}\n{'':15} {where}")
