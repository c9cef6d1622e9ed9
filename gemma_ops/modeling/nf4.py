"""4-bit weights (nf4, QLoRA's: arXiv 2305.14314) quantized piece by piece from a file, and dequantized when used.

bitsandbytes quantizes a tensor that is in memory. Here it is read in pieces, each quantized where it will live and
dropped, and the result is bit for bit what bitsandbytes makes of the whole: blocks of 64 numbers don't reach over
pieces, and the second quantization, of the blocks' scales, runs once over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from gemma_ops.modeling.shards import TensorEntry, shard_pieces
from gemma_ops.modeling.triton_launch import kernels, triton_here

BLOCK = 64
"""Numbers that share a scale."""
NESTED = 256
"""Scales that share a scale of their own (double quantization)."""
_PIECE = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Numbers read and quantized at a time: 64 MiB of bf16 for a GPU; bitsandbytes takes 70 bytes a number on a CPU."""


def quantize_nf4(
    entry: TensorEntry,
    device: str | torch.device,
    dtype: torch.dtype = torch.bfloat16,
    storage: torch.dtype = torch.uint8,
) -> Any:
    """Return the tensor of a file as bitsandbytes' `Params4bit` on `device`, read and quantized piece by piece.

    `dtype` is what the numbers are rounded to before, and what they become again when used; `storage` the type that the
    packed bytes pass for. The shape is kept in `quant_state.shape`; it may have three dimensions (experts, outputs,
    inputs).
    """
    import bitsandbytes as bnb
    from bitsandbytes.functional import quantize_4bit

    count = entry.parameters
    packed = torch.empty(((count + 1) // 2, 1), dtype=torch.uint8, device=device)
    scales = torch.empty(math.ceil(count / BLOCK), dtype=torch.float32, device=device)
    for first, numbers in shard_pieces(entry, _PIECE.get(packed.device.type, 1 << 18), multiple=BLOCK):
        part, state = quantize_4bit(numbers.to(device, dtype), blocksize=BLOCK, quant_type="nf4")
        packed[first // 2 : first // 2 + part.numel()] = part.view(-1, 1)
        scales[first // BLOCK : first // BLOCK + state.absmax.numel()] = state.absmax
    offset = scales.mean()
    absmax, nested = bnb.functional.quantize_blockwise(scales - offset, blocksize=NESTED)
    return _parameter(_stored(packed, storage), entry.shape, dtype, absmax, offset, nested)


def _stored(packed: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    """Return a tensor's bytes as `[n, 1]` numbers of another type."""
    return packed if storage == torch.uint8 else packed.view(-1).view(storage).view(-1, 1)


def placeholder(shape: Sequence[int], storage: torch.dtype = torch.uint8) -> Any:
    """Return a `Params4bit` of that shape on the meta device: the bytes can be counted before anything is read."""
    from bitsandbytes.functional import QuantState

    count = math.prod(shape)
    blocks = math.ceil(count / BLOCK)
    meta = torch.device("meta")
    nested = QuantState(
        absmax=torch.empty(math.ceil(blocks / NESTED), dtype=torch.float32, device=meta),
        code=torch.empty(256, dtype=torch.float32, device=meta),
        blocksize=NESTED,
        dtype=torch.float32,
    )
    packed = torch.empty(((count + 1) // 2 // storage.itemsize, 1), dtype=storage, device=meta)
    absmax = torch.empty(blocks, dtype=torch.uint8, device=meta)
    return _parameter(packed, shape, torch.bfloat16, absmax, torch.empty((), device=meta), nested)


def _parameter(
    packed: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    absmax: torch.Tensor,
    offset: torch.Tensor,
    nested: Any,
) -> Any:
    import bitsandbytes as bnb

    code = bnb.functional.get_4bit_type("nf4", device=packed.device if packed.device.type != "meta" else "cpu")
    state = bnb.functional.QuantState(
        absmax=absmax,
        shape=torch.Size(shape),
        code=code,
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=offset,
        state2=nested,
    )
    return bnb.nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        quant_storage=packed.dtype,
        bnb_quantized=True,
    )


_kernel = partial(kernels, "gemma_ops.modeling.nf4_triton")


def is_4bit(parameter: Any) -> bool:
    """True if a parameter is held in 4 bits."""
    return type(parameter).__name__ == "Params4bit"


def size(parameter: Any) -> int:
    """Return the bytes of a 4-bit parameter with its scales; the two constant code tables, about 1 KiB, are not
    counted."""
    state = parameter.quant_state
    return int(sum(part.numel() * part.element_size() for part in (parameter, state.absmax, state.state2.absmax)))


def planned_size(parameters: int) -> int:
    """Return the bytes that so many numbers take as one tensor in 4 bits: half a byte each, a byte for 64, a float for
    64 * 256."""
    blocks = math.ceil(parameters / BLOCK)
    return (parameters + 1) // 2 + blocks + 4 * math.ceil(blocks / NESTED)


def dequantize_nf4(parameter: Any, state: Any = None) -> torch.Tensor:
    """Return the numbers that a 4-bit parameter stands for, in its `quant_state`'s shape and dtype: memory of their
    own, so use them and let them go. `state` is given for bytes that FSDP has gathered, which lost theirs. On a GPU one
    Triton kernel makes them, the same bits, where Triton is installed and the state is of the kind that `quantize`
    makes."""
    packed, state = parameter.data, state or parameter.quant_state
    if triton_here(packed) and (kernel := _kernel()) and kernel.fits(packed, state):
        fast: torch.Tensor = kernel.dequantize(packed, state)
        return fast
    from bitsandbytes.functional import dequantize_4bit

    found: torch.Tensor = dequantize_4bit(packed, state)
    return found


def linear(inputs: int, outputs: int, weight: Any) -> Any:
    """Return bitsandbytes' `Linear4bit` around a 4-bit weight.

    On CPUs with AVX512-BF16 it would repack its weight at the first answer and give other numbers from then on, which
    `dequantize` and PEFT's merge don't know of (bitsandbytes 0.50: garbage): that is switched off.
    """
    import bitsandbytes as bnb

    module = bnb.nn.Linear4bit(
        inputs,
        outputs,
        bias=False,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        quant_storage=weight.dtype,
        device="meta",
    )
    module.support_avx512bf16_for_cpu = False
    install_nf4(module, weight)
    return module


def install_nf4(module: Any, weight: Any) -> None:
    """Set the weight of a `Linear4bit`."""
    weight.module = module
    module.weight = weight
    module.quant_state = weight.quant_state
    module.compute_dtype = weight.quant_state.dtype
