"""The benchmark `gemma-ops bench train`: one training step of gemma-ops against stock TRL and whoever else is
installed.

`spec` says what is measured, `arms` who is, `child` is the process that measures, `runner` starts one after the other,
`report` and `picture` say what came out, `suite` is the list for a GPU.
"""

from __future__ import annotations

from gemma_ops.bench.training.bench_spec import BenchSpec, make_spec
from gemma_ops.bench.training.runner import BenchRunner

__all__ = ["BenchRunner", "BenchSpec", "make_spec"]
