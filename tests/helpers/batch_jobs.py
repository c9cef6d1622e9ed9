"""Questions for batch jobs, clients that ask them, and processes that can be killed while they do.

The fixture `forks` is there for every test.
"""

from __future__ import annotations

import multiprocessing

import pytest

from gemma_ops.gemini.batch import BatchDoor
from gemma_ops.gemini.cache import Store, open_ledger
from gemma_ops.gemini.client import Client
from gemma_ops.gemini.request import Request
from tests.helpers import patience

FLASH = "gemini-3.8-flash"


def questions(count, **more):
    settings = {"model": FLASH, "max_output_tokens": 256, "use": "synth", "privacy": "any"} | more
    return {
        number: Request(messages=({"role": "user", "content": f"question {number}"},), **settings)
        for number in range(count)
    }


def client_of(machine):
    return Client(machine.gemini, Store(open_ledger(machine, "test"), "rehearsal"))


def answered(client, asked, notes=None):
    """Answers by number, of those that the batch answered."""
    found = {}
    note = (notes if notes is not None else []).append
    BatchDoor(client, note=lambda **fields: note(fields)).answer(
        asked, lambda number, sent: found.__setitem__(number, sent.answer)
    )
    return found


def asking(machine, asked):
    answered(client_of(machine), asked)


@pytest.fixture(scope="module")
def forks():
    """Processes that start at once, with the libraries loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["google.genai", "gemma_ops.gemini.batch"])
    return context


def wait_for(condition, seconds=20.0):
    patience.until(condition, seconds)
