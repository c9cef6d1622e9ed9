"""Bytes of plain tensors, beside gguf's own quantizer."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from gemma_ops.export.gguf_tensors import PlannedTensor
from gemma_ops.export.tensor_bytes import TensorBytes, rounded_rows


def rows() -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    found = torch.randn(64, 256, generator=draw) * torch.logspace(-9, 3, 64).unsqueeze(1)
    found[5], found[6] = 0.0, 1.0
    found[7, :32] = torch.arange(-16, 16)  # ties between codes
    return found.bfloat16()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q5_0", "Q4_0"])
def test_plain_tensors_have_the_bytes_that_gguf_gives_them(kind):
    made = TensorBytes().encode(PlannedTensor("x", None, (64, 256), kind), 0, rows())
    wanted = gguf.quants.quantize(rows().float().numpy(), gguf.GGMLQuantizationType[kind])
    assert made == wanted.tobytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0", "Q6_K", "Q4_K", "IQ4_XS"])
def test_rounded_rows_are_what_the_bytes_say(kind):
    made = TensorBytes().encode(PlannedTensor("x", None, (64, 256), kind), 0, rows())
    stored = np.frombuffer(made, dtype=np.uint8).reshape(64, -1)
    read = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(rounded_rows(rows().float(), kind).numpy(), read)
