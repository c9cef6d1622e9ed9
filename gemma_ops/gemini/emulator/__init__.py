"""A Gemini server for rehearsals and tests: the protocol with its faults, a log of every request, answers at no cost.

The real google-genai client talks to it over HTTP. It counts tokens by its own rule, knows no prices, and imports
nothing of Google's.
"""

from gemma_ops.gemini.emulator.batches import Pace
from gemma_ops.gemini.emulator.log import Entry
from gemma_ops.gemini.emulator.responder import Body, Reply, Responder
from gemma_ops.gemini.emulator.server import Emulator

__all__ = ["Body", "Emulator", "Entry", "Pace", "Reply", "Responder"]
