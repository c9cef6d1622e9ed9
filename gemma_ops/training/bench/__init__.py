"""`gemma-ops bench train`: one training step of gemma-ops beside stock TRL and whoever else is installed.

`spec` says what is measured, `arms` who is, `child` is the process that measures, `runner` starts one after the other,
`report` and `picture` say what came out, `suite` is the list for a GPU.
"""

from __future__ import annotations

from gemma_ops.training.bench.runner import Runner
from gemma_ops.training.bench.spec import Spec, make

__all__ = ["Runner", "Spec", "make"]
