"""The methods that write rows. Each is one file: its prompt, the shape of the reply, and how a reply becomes rows."""

from __future__ import annotations

from gemma_ops.synth.material import Method
from gemma_ops.synth.methods import document_qa, evolve, preference_pairs, self_instruct, tool_calls

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        document_qa.METHOD,
        self_instruct.METHOD,
        evolve.METHOD,
        tool_calls.METHOD,
        preference_pairs.METHOD,
    )
}
