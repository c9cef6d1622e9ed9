"""The simulation behind `plan --simulate`: the bytes of one training step, by running it on fake tensors at true
size."""

from __future__ import annotations
