"""The one-launch dequantization gives bitsandbytes' bits, and leaves to bitsandbytes what it can't read.

In Triton's interpreter where Triton is installed without a GPU; on a GPU also inside a captured graph.
"""

from __future__ import annotations

import copy

import pytest
import torch

from tests.helpers.triton_interpreter import interpreted, needs_gpu, needs_triton

SHAPES = [
    ((96, 128), torch.bfloat16, torch.uint8),
    ((3, 40, 192), torch.bfloat16, torch.bfloat16),  # three dimensions, bytes that pass for numbers
    ((64, 72), torch.float32, torch.uint8),
    ((40, 64), torch.float16, torch.uint8),
    ((130, 1000), torch.bfloat16, torch.uint8),  # several programs, the last one partly; scales of two outer blocks
]


def quantized(shape, dtype, storage, device):
    from bitsandbytes.functional import quantize_4bit

    torch.manual_seed(0)
    numbers = (torch.randn(shape) * 0.03).to(device, dtype)
    numbers.view(-1)[:64] = 0  # a block without scale
    return quantize_4bit(numbers, compress_statistics=True, quant_type="nf4", quant_storage=storage)


def compare(device):
    from bitsandbytes.functional import dequantize_4bit

    from gemma_ops.modeling import nf4_triton

    for shape, dtype, storage in SHAPES:
        packed, state = quantized(shape, dtype, storage, device)
        assert nf4_triton.fits_nf4_triton(packed, state)
        ours, theirs = nf4_triton.dequantize_nf4_triton(packed, state), dequantize_4bit(packed, state)
        assert ours.dtype == theirs.dtype == dtype
        assert ours.shape == theirs.shape == shape
        assert torch.equal(ours, theirs), (shape, dtype)
        state.state2.absmax[-1] *= 2
        assert not torch.equal(nf4_triton.dequantize_nf4_triton(packed, state), theirs)  # the scales' own scale is read


def refuse():
    """What differs from our own quantization in one thing."""
    from bitsandbytes.functional import quantize_4bit

    from gemma_ops.modeling import nf4_triton

    packed, state = quantized((96, 128), torch.bfloat16, torch.uint8, "cpu")
    plain = {"quant_type": "fp4", "blocksize": 128, "code": state.code.double(), "shape": torch.Size((95, 128))}
    for name, value in (plain | {"state2": None}).items():
        other = copy.deepcopy(state)
        setattr(other, name, value)
        assert not nf4_triton.fits_nf4_triton(packed, other), name
    state.state2.blocksize = 128
    assert not nf4_triton.fits_nf4_triton(packed, state)
    odd, state = quantize_4bit(torch.randn(3, 2), compress_statistics=True, quant_type="nf4")
    assert not nf4_triton.fits_nf4_triton(odd, state)


@needs_triton
def test_in_the_interpreter_the_bits_are_bitsandbytes():
    interpreted(__name__, "compare('cpu')", "refuse()")


@needs_gpu
def test_on_a_gpu_the_bits_are_bitsandbytes():
    for _ in range(2):  # compiled, and then started directly
        compare("cuda")
    refuse()


@needs_gpu
def test_a_captured_graph_makes_the_numbers_again():
    from gemma_ops.modeling import nf4

    packed, state = quantized((256, 512), torch.bfloat16, torch.uint8, "cuda")
    parameter = torch.nn.Parameter(packed, requires_grad=False)
    want = nf4.dequantize_nf4(parameter, state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = nf4.dequantize_nf4(parameter, state)
    found.zero_()
    graph.replay()
    assert torch.equal(found, want)


def test_a_cpu_never_asks_for_the_kernel(monkeypatch):
    from gemma_ops.modeling import nf4

    monkeypatch.setattr(nf4, "_kernel", lambda: pytest.fail("asked for on a CPU"))
    packed, state = quantized((96, 128), torch.bfloat16, torch.uint8, "cpu")
    assert nf4.dequantize_nf4(torch.nn.Parameter(packed, requires_grad=False), state).shape == (96, 128)
