"""Blocks as the bytes of a GGUF file, and back.

Layouts: llama.cpp, ggml-common.h (`block_q4_0` … `block_iq4_xs`) and the loops of ggml-quants.c that fill them.
"""

from __future__ import annotations

import torch

from gemma_ops.family.formats import BITS, TensorType
from gemma_ops.ggml.lattices import LATTICES, Blocks


def pack_blocks(blocks: Blocks) -> torch.Tensor:
    """Return the bytes of quantized rows, (rows, bytes of a row) uint8."""
    lattice = blocks.lattice
    rows = len(blocks.codes)
    codes = blocks.codes.reshape(-1, lattice.block).to(torch.int32)
    scale = _halves(blocks.scale)
    if lattice.type == "Q8_0":
        parts = [scale, codes.to(torch.int8).view(torch.uint8)]
    elif lattice.type == "Q4_0":
        parts = [scale, _nibbles(codes + 8, 32)]
    elif lattice.type == "Q5_0":
        parts = [scale, _bits((codes + 16) >> 4), _nibbles(codes + 16 & 15, 32)]
    elif lattice.type == "Q6_K":
        steps = _held(blocks.steps).reshape(-1, 16).to(torch.int8).view(torch.uint8)
        parts = [*_six_bits(codes + 32), steps, scale]
    elif lattice.type == "IQ4_XS":
        parts = [scale, *_signed_steps(_held(blocks.steps).reshape(-1, 8).to(torch.int32) + 32), _nibbles(codes, 32)]
    else:
        small = _steps_and_offsets(_held(blocks.steps).reshape(-1, 8).int(), _held(blocks.offsets).reshape(-1, 8).int())
        high = [_fifth_bits(codes >> 4)] if lattice.type == "Q5_K" else []
        parts = [scale, _halves(_held(blocks.floor)), small, *high, _nibbles(codes & 15, 64)]
    return torch.cat(parts, 1).reshape(rows, -1)


def unpack_blocks(data: torch.Tensor, kind: TensorType) -> Blocks:
    """Return the blocks that rows of bytes, (rows, bytes of a row) uint8, hold."""
    lattice = LATTICES[kind]
    rows = len(data)
    data = data.reshape(-1, int(BITS[kind] * lattice.block / 8))
    at = 0

    def take(count: int) -> torch.Tensor:
        nonlocal at
        at += count
        return data[:, at - count : at]

    steps = floor = offsets = None
    if kind == "Q6_K":
        codes = _from_six_bits(take(128), take(64)) - 32
        steps = take(16).contiguous().view(torch.int8)
        scale = _from_halves(take(2))
    else:
        scale = _from_halves(take(2))
        if kind == "Q8_0":
            codes = take(32).contiguous().view(torch.int8)
        elif kind == "Q4_0":
            codes = _from_nibbles(take(16), 32) - 8
        elif kind == "Q5_0":
            codes = (_from_bits(take(4)) << 4 | _from_nibbles(take(16), 32)) - 16
        elif kind == "IQ4_XS":
            steps = _from_signed_steps(take(2), take(4)) - 32
            codes = _from_nibbles(take(128), 32)
        else:
            floor = _from_halves(take(2))
            steps, offsets = _from_steps_and_offsets(take(12))
            high = _from_fifth_bits(take(32)) << 4 if kind == "Q5_K" else 0
            codes = high | _from_nibbles(take(128), 64)

    def wide(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.reshape(rows, -1)

    def small(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.to(torch.int16).reshape(rows, -1)

    codes = codes.to(torch.int16).reshape(rows, -1)
    return Blocks(lattice, codes, scale.reshape(rows, -1), small(steps), wide(floor), small(offsets))


def _held(part: torch.Tensor | None) -> torch.Tensor:
    """Return a part that blocks of this type always have. Raises ValueError where it is absent."""
    if part is None:
        raise ValueError("the blocks lack a part that their type has")
    return part


def _halves(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1).half().view(torch.uint8)


def _from_halves(data: torch.Tensor) -> torch.Tensor:
    return data.contiguous().view(torch.float16).float()


def _nibbles(codes: torch.Tensor, span: int) -> torch.Tensor:
    """Return two codes of 4 bits a byte: in each `span` of codes, the first half in the low bits."""
    pairs = codes.view(len(codes), -1, 2, span // 2)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).to(torch.uint8).reshape(len(codes), -1)


def _from_nibbles(data: torch.Tensor, span: int) -> torch.Tensor:
    found = data.reshape(len(data), -1, span // 2).int()
    return torch.stack([found & 15, found >> 4], 2).reshape(len(data), -1)


def _bits(codes: torch.Tensor) -> torch.Tensor:
    """Return 32 bits as 4 bytes, the first in the lowest place."""
    places = torch.arange(8, dtype=torch.int32, device=codes.device)
    return (codes.view(len(codes), 4, 8) << places).sum(2).to(torch.uint8)


def _from_bits(data: torch.Tensor) -> torch.Tensor:
    places = torch.arange(8, dtype=torch.int32, device=data.device)
    return (data.int().unsqueeze(-1) >> places & 1).reshape(len(data), -1)


def _fifth_bits(codes: torch.Tensor) -> torch.Tensor:
    """Return the fifth bits of 256 codes as 32 bytes: byte j holds those of codes j, 32 + j, …, the first in the lowest
    place."""
    places = torch.arange(8, dtype=torch.int32, device=codes.device)[:, None]
    return (codes.view(len(codes), 8, 32) << places).sum(1).to(torch.uint8)


def _from_fifth_bits(data: torch.Tensor) -> torch.Tensor:
    places = torch.arange(8, dtype=torch.int32, device=data.device)[:, None]
    return (data.int().unsqueeze(1) >> places & 1).reshape(len(data), -1)


def _six_bits(codes: torch.Tensor) -> list[torch.Tensor]:
    """Return 256 codes of 6 bits as 128 bytes of their low four bits and 64 of their high two. In each half of the
    block, byte j of the first holds codes j and 64 + j, byte j of the second codes j, 32 + j, 64 + j and 96 + j."""
    half = codes.view(len(codes), 2, 4, 32)
    low = half & 15
    low = torch.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2)
    high = half >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return [low.to(torch.uint8).reshape(len(codes), -1), high.to(torch.uint8).reshape(len(codes), -1)]


def _from_six_bits(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    four = low.reshape(len(low), 2, 2, 32).int()
    two = high.reshape(len(low), 2, 1, 32).int()
    places = torch.arange(0, 8, 2, dtype=torch.int32, device=low.device)[:, None]
    return (torch.cat([four & 15, four >> 4], 2) | (two >> places & 3) << 4).reshape(len(low), -1)


def _steps_and_offsets(steps: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return eight steps and eight offsets of 6 bits as 12 bytes: the first four of each whole, in whose two free bits
    lie the high bits of the last four, then the low bits of those."""
    first = torch.cat([steps[:, :4] | steps[:, 4:] >> 4 << 6, offsets[:, :4] | offsets[:, 4:] >> 4 << 6], 1)
    return torch.cat([first, steps[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4], 1).to(torch.uint8)


def _from_steps_and_offsets(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    one, two, three = data.int().split(4, 1)
    steps = torch.cat([one & 63, three & 15 | one >> 6 << 4], 1)
    return steps, torch.cat([two & 63, three >> 4 | two >> 6 << 4], 1)


def _signed_steps(steps: torch.Tensor) -> list[torch.Tensor]:
    """Return eight steps of 6 bits as 2 bytes of their high two bits and 4 of their low four."""
    places = torch.arange(0, 8, 2, dtype=torch.int32, device=steps.device)
    high = (steps.view(len(steps), 2, 4) >> 4 << places).sum(2)
    low = steps[:, 0::2] & 15 | (steps[:, 1::2] & 15) << 4
    return [high.to(torch.uint8), low.to(torch.uint8)]


def _from_signed_steps(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    places = torch.arange(0, 8, 2, dtype=torch.int32, device=high.device)
    upper = (high.int().unsqueeze(-1) >> places & 3).reshape(len(high), -1)
    return _from_nibbles(low, 2) | upper << 4
