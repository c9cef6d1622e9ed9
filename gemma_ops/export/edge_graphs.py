"""Float graphs of a checkpoint for LiteRT-LM: converted here, or made once of the base and kept, for tuned tensors to
be laid into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import ConfigError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.family import Shape
from gemma_ops.modeling.checkpoint_source import checkpoint, local_base
from gemma_ops.planning.edge_memory import check_conversion
from gemma_ops.runs.durable import write_json
from gemma_ops.runs.processes import free_memory
from gemma_ops.toolenvs.tool_job import run_tool_job
from gemma_ops.toolenvs.tool_list import TOOLS

TOOL = TOOLS["litert"]
_RECORD = "graphs.json"
"""File of a folder of float graphs that is whole: of which checkpoint, with room for how many tokens."""


def make_base_graphs(model: str, out: Path, machine: MachineConfig, *, context: int) -> dict[str, Any]:
    """Convert a base to float graphs in the folder `out`, and return what that took. Raises MachineError where the tool
    or the memory is missing, ModelError for a model that isn't converted, ConfigError for one that isn't here."""
    found = local_base(model)
    if found is None:
        raise ConfigError(f"{model} is no folder here", "give the checkpoint's folder, or nano")
    folder = checkpoint(found)
    source = MergedCheckpoint(folder)
    check_conversion(Shape.from_config(source.config), free_memory(), grafted=False)
    (out / _RECORD).unlink(missing_ok=True)
    told = _convert(folder, out, machine, context, out.with_name(f"{out.name}.job"))
    write_json(out / _RECORD, {"base": str(folder.absolute()), "context": context, "lock": TOOL.digest, **told})
    return told


def float_graphs(
    source: MergedCheckpoint, settings: QuantizeConfig, machine: MachineConfig, out: Path, scratch: Path
) -> dict[str, Any]:
    """Write the float graphs of a checkpoint to `out`, and return by what: converted, or laid into those of its base
    (`quantize.edge_graphs`). Raises MachineError, ModelError and GateError as the ways there do, ConfigError for graphs
    that don't fit."""
    shape = Shape.from_config(source.config)
    check_conversion(shape, free_memory(), grafted=settings.edge_graphs is not None)
    if settings.edge_graphs is None:
        return {"way": "converted", **_convert(source.folder, out, machine, settings.edge_context, scratch / "export")}
    graphs = Path(settings.edge_graphs).expanduser()
    record = _read_record(graphs, settings)
    request = {
        "graphs": str(graphs.absolute()), "base": record["base"], "model": str(source.folder.absolute()),
        "out": str(out.absolute()),
    }  # fmt: skip
    laid = run_tool_job(TOOL, machine, "edge_graft", request, scratch / "graft", what="quantize.edge_graphs")
    return {"way": "grafted", "laid": laid["laid"], "versions": record["versions"]}


def _convert(folder: Path, out: Path, machine: MachineConfig, context: int, job: Path) -> dict[str, Any]:
    request = {"model": str(folder.absolute()), "out": str(out.absolute()), "context": context}
    told = run_tool_job(TOOL, machine, "edge_export", request, job, what="a .litertlm file")
    return {"versions": told["versions"]}


def _read_record(graphs: Path, settings: QuantizeConfig) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((graphs / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"quantize.edge_graphs: {graphs} holds no float graphs that are whole (no {_RECORD})",
            "make them: gemma-ops tools edge-graphs MODEL FOLDER",
        ) from None
    wanted = {"context": settings.edge_context, "lock": TOOL.digest}
    if odd := [key for key, value in wanted.items() if record.get(key) != value]:
        raise ConfigError(
            f"quantize.edge_graphs: {graphs} was made with another {odd[0]}: {str(record.get(odd[0]))[:12]} instead of "
            f"{str(wanted[odd[0]])[:12]}",
            "make them again: gemma-ops tools edge-graphs MODEL FOLDER --context N, with quantize.edge_context",
        )
    if not Path(record["base"]).is_dir():
        raise ConfigError(
            f"quantize.edge_graphs: the base of {graphs} is no longer at {record['base']}",
            "make them again where the base lies now",
        )
    return record
