"""Jobs for clusters, as text: the torchrun line, a Ray job, SkyPilot, Slurm, a Kubeflow TrainJob.

Pure functions of a `Rendering`: nothing is started, nothing asked, no secret read; what a job needs from the
environment is named and never filled in.
"""

from __future__ import annotations

from collections.abc import Callable

from gemma_ops.training.launch.render.cluster import outside, render_torchrun, slurm
from gemma_ops.training.launch.render.kubeflow import kubeflow
from gemma_ops.training.launch.render.rayjob import ray
from gemma_ops.training.launch.render.resources import Rendering, rendering
from gemma_ops.training.launch.render.skypilot import skypilot

FORMATS: dict[str, Callable[[Rendering], str]] = {
    "torchrun": render_torchrun,
    "ray": ray,
    "skypilot": skypilot,
    "slurm": slurm,
    "kubeflow": kubeflow,
}
"""Formats that `gemma-ops launch render --as` takes."""

__all__ = ["FORMATS", "Rendering", "outside", "rendering"]
