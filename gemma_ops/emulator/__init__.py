"""A Gemini server for rehearsals and tests: the protocol with its faults, a log of every request, answers at no cost.

The real google-genai client talks to it over HTTP. It counts tokens by its own rule, knows no prices, and imports
nothing of Google's.
"""

from gemma_ops.emulator.emulated_batches import Pace
from gemma_ops.emulator.emulator_log import LogEntry
from gemma_ops.emulator.emulator_server import Emulator
from gemma_ops.emulator.responder import Body, EmulatedReply, Responder

__all__ = ["Body", "EmulatedReply", "Emulator", "LogEntry", "Pace", "Responder"]
