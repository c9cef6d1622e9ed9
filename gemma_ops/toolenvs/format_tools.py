"""Which formats are made by which tool, and what of that is missing here."""

from __future__ import annotations

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import OpsError
from gemma_ops.family.formats import EDGE, PACKED
from gemma_ops.toolenvs.install_tool import require_tool
from gemma_ops.toolenvs.tool_list import TOOLS, Tool


def making_tool(form: str, settings: QuantizeConfig) -> Tool | None:
    """Return the tool that makes a format; None for what is written here."""
    if form in EDGE:
        return TOOLS["litert"]
    made_here = form not in PACKED or (PACKED[form].lattice is not None and settings.w4a16 == "own")
    return None if made_here else TOOLS["llm-compressor"]


def missing_tools(settings: QuantizeConfig, machine: MachineConfig) -> list[OpsError]:
    """Return the refusals of the formats whose tool is not installed, one a tool."""
    found: dict[str, OpsError] = {}
    for form in settings.formats:
        if tool := making_tool(form, settings):
            try:
                require_tool(tool, machine, f"quantize.formats: {form}")
            except OpsError as error:
                found.setdefault(tool.name, error)
    return list(found.values())
