"""The number of CPU threads a model computes with, where nothing sets it.

OpenMP's threads meet after every matrix product, and spin while they wait. Beside another busy process one of them is
always late, and the others burn its core: with as many threads as cores, training nano fell from 2,700 to 150 tokens a
second. Two things keep that from happening. Small models get one thread, which is as fast as two when the machine is
idle; and the package asks OpenMP for passive waiting (`OMP_WAIT_POLICY`), which hands the core over.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from gemma_ops.modeling.checkpoint_source import check_shards

SMALL = 100 << 20
"""Bytes of weights below which threads wait for each other longer than they compute."""


def settle_threads(folder: Path, workers: int | None) -> int:
    """Set, and return, how many threads torch computes with: `workers`, else what OMP_NUM_THREADS says, else one for a
    checkpoint folder with less than `SMALL` bytes of weights, else torch's own number, all cores."""
    import torch

    threads = workers or _usual()
    if workers is None and "OMP_NUM_THREADS" not in os.environ:
        small = sum(shard.stat().st_size for shard in check_shards(folder)) < SMALL
        threads = 1 if small else threads
    torch.set_num_threads(threads)
    return threads


@cache
def _usual() -> int:
    """Return torch's own number, as it was before it was first changed here."""
    import torch

    return int(torch.get_num_threads())
