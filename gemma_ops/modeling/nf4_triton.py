"""A Triton kernel that dequantizes packed nf4 bytes, bit for bit as bitsandbytes (0.50) does.

bitsandbytes launches three for a twice quantized weight: one makes float32 scales of their bytes, one adds the offset,
one makes the numbers. This one reads half a byte a number and writes the result: nothing else reaches memory.

    scale = code[absmax[i / 64]] * nested[i / 64 / 256] + offset        float32, two roundings: no fused multiply-add
    number = table[nibble] * scale                                      float32, rounded once to the result's type

The first number of a byte is its high nibble. A thread takes four bytes, so that a warp reads 128 bytes in a row and
writes 512 with the widest stores. The table's 16 entries are looked up in shared memory, each in a bank of its own: the
15 selects of a tree would be more work than the memory leaves time for, and global memory takes two instructions more a
number for its longer addresses. bitsandbytes' kernels flush products below 1.2e-38 to zero; this one keeps them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemma_ops.modeling.triton_launch import launch

WORD = 8
"""Numbers in four bytes."""
_WORDS = 1024
"""Words that one program handles: 128 scales, which share one scale of their own."""
_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def spread_codes(packed, absmax, code, nested, offset, table, out, words, WORDS: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    first = tl.program_id(0).to(tl.int64) * WORDS
    at = tl.arange(0, WORDS)
    left = words - first
    source = packed.to(tl.pointer_type(tl.int32)) + first
    outer = tl.load(nested + first // (8 * 256))
    if EVEN:
        word = tl.load(source + at, eviction_policy="evict_first")
        index = tl.load(absmax + first // 8 + at // 8)
    else:
        word = tl.load(source + at, mask=at < left, other=0, eviction_policy="evict_first")
        index = tl.load(absmax + first // 8 + at // 8, mask=at < left, other=0)
    scale = tl.load(code + index) * outer + tl.load(offset)
    number = tl.arange(0, 8)
    shift = (number // 2) * 8 + (1 - number % 2) * 4
    nibble = (word[:, None] >> shift[None, :]) & 15
    unit = tl.gather(tl.load(table + tl.arange(0, 16)), tl.reshape(nibble, [WORDS * 8]), 0)
    value = (tl.reshape(unit, [WORDS, 8]) * scale[:, None]).to(out.dtype.element_ty)
    place = out + first * 8 + at[:, None] * 8 + number[None, :]
    if EVEN:
        tl.store(place, value)
    else:
        tl.store(place, value, mask=at[:, None] < left)


def dequantize_nf4_triton(packed: Tensor, state: Any) -> Tensor:
    """Return the numbers of `packed` bytes (of any type), whose bitsandbytes `state` is one that `fits`."""
    found = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    nested, words = state.state2, found.numel() // WORD
    pointers = packed, state.absmax, nested.code, nested.absmax, state.offset, state.code, found
    grid = -(-words // _WORDS), 1, 1
    launch(spread_codes, grid, pointers, (words,), (_WORDS, words % _WORDS == 0), _WARPS, enable_fp_fusion=False)
    return found


def fits_nf4_triton(packed: Tensor, state: Any) -> bool:
    """True if `dequantize` can read this: nf4 in blocks of 64, whose scales are bytes in blocks of 256."""
    nested, count = state.state2, math.prod(state.shape)
    return (
        nested is not None
        and state.quant_type == "nf4"
        and state.blocksize == 64
        and nested.blocksize == 256
        and nested.code.numel() == 256
        and nested.code.dtype == nested.absmax.dtype == state.offset.dtype == state.code.dtype == torch.float32
        and state.absmax.dtype == torch.uint8
        and packed.device == state.absmax.device == nested.absmax.device == nested.code.device == state.offset.device
        and state.code.device == packed.device
        and packed.data_ptr() % 4 == 0
        and packed.is_contiguous()
        and packed.shape[0] != 1
        and packed.numel() * packed.element_size() * 2 == count
        and count % WORD == 0
    )
