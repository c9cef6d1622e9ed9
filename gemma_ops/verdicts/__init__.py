"""`verdict.json` and `routing.json` as records: what an evaluation says, for every room that reads it.

record.py     what all of them are: frozen, lenient in reading, strict in writing, the same bytes back
figures.py    what was measured, per target and per pair of targets
gate_record.py      what was asked, how it ended, and the standard it was held to
routing_record.py    which questions to keep on a local model (`Routing`)
document.py   the whole verdict (`Verdict`)
safety.py     what probes found, and what a token costs in keys and values
canary_record.py     what a server must answer before it may serve
"""

from gemma_ops.verdicts.canary_record import CANARY, CANARY_SCHEMA
from gemma_ops.verdicts.document import VERDICT, TargetFacts, TaskFacts, Verdict
from gemma_ops.verdicts.file_fidelity_record import FileFidelity
from gemma_ops.verdicts.gate_record import Gate, Look
from gemma_ops.verdicts.measurements import Figure, PairedDifference, TargetResult
from gemma_ops.verdicts.routing_record import ROUTING, Routing, RoutingLine, RoutingTable
from gemma_ops.verdicts.safety import KvFacts, MemorizedFacts, RefusedFacts, SafetyFacts

__all__ = [
    "CANARY",
    "CANARY_SCHEMA",
    "ROUTING",
    "VERDICT",
    "Figure",
    "FileFidelity",
    "Gate",
    "KvFacts",
    "Look",
    "MemorizedFacts",
    "PairedDifference",
    "RefusedFacts",
    "Routing",
    "RoutingLine",
    "RoutingTable",
    "SafetyFacts",
    "TargetFacts",
    "TargetResult",
    "TaskFacts",
    "Verdict",
]
