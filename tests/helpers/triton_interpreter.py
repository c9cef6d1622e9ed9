"""What the tests of Triton kernels share: a run in Triton's interpreter, on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(GPU or not TRITON, reason="needs Triton, and no GPU: torch's CPU builds lack it")


def interpreted(module: str, *calls: str) -> None:
    """Run calls of a test module's functions in a process of its own, where kernels are interpreted."""
    code = f"from tests.helpers import triton_interpreter as w; w.nearest(); import {module} as t; " + "; ".join(
        f"t.{call}" for call in calls
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def nearest() -> None:
    """Let the interpreter (Triton 3.6) round to bfloat16 as the GPU does: it cuts off."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(numbers, source, target, mode):
        if source == tl.float32 and target == tl.bfloat16:
            plain = torch.from_numpy(np.array(numbers.view(np.float32)))
            return plain.bfloat16().view(torch.int16).numpy().view(np.uint16)
        return cut(numbers, source, target, mode)

    interpreter._convert_float = convert
