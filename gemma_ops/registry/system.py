"""Sampling of CPU, memory, disk, network and GPU during a run, under the names that MLflow's "System metrics" page
reads.

MLflow has a monitor of its own, on another thread and bound to its global run. Here the mirror's thread samples with
the same collectors, so that there is one connection, one batch and one place that knows about outages.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from gemma_ops.registry.profile import Tracking


class Monitor:
    """Sampler that logs at most once per `every` seconds; what can't be measured here (no GPU, no driver) is left
    out."""

    def __init__(self, every: float) -> None:
        self.every = every
        self._next = 0.0
        self._count = 0
        self._collectors: list[Any] | None = None

    def sample(self, tracking: Tracking, run_id: str) -> None:
        """Log one sample to the run if it is time for one."""
        now = time.time()
        if now < self._next:
            return
        self._next = now + self.every
        if self._collectors is None:
            self._collectors = _collectors()
        from mlflow.entities import Metric

        values = []
        for collector in self._collectors:
            collector.collect_metrics()
            values += [
                Metric(f"system/{key}", float(value), int(now * 1000), self._count)
                for key, value in collector.aggregate_metrics().items()
            ]
            collector.clear_metrics()
        self._count += 1
        tracking.client.log_batch(run_id, metrics=values)


def _collectors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(ImportError, RuntimeError):  # no NVIDIA library, or no device behind it
        found.append(GPUMonitor())
    return found
