"""Blocks of GGML's types: bytes that gguf and llama.cpp read as we do, and less error than llama.cpp's own encoder."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from gemma_ops.family.formats import BITS, BLOCKS, TensorType
from gemma_ops.ggml.encoding import encode_rows
from gemma_ops.ggml.lattices import LATTICES, Blocks, join_blocks
from gemma_ops.ggml.packing import pack_blocks, unpack_blocks
from tests.helpers import ggml_peer

KINDS = tuple(LATTICES)


def made_up(kind: TensorType, rows: int = 7, width: int = 512, seed: int = 0) -> Blocks:
    """Blocks of random codes and scales: every value that the bytes can say."""
    lattice = LATTICES[kind]
    random = np.random.default_rng(seed)

    def whole(limits: tuple[int, int] | None, count: int) -> torch.Tensor | None:
        return (
            None
            if limits is None
            else torch.from_numpy(random.integers(limits[0], limits[1] + 1, (rows, count)).astype(np.int16))
        )

    def halves() -> torch.Tensor:
        return torch.from_numpy(random.normal(0, 0.02, (rows, width // lattice.block))).half().float()

    codes = whole((lattice.low, lattice.high), width)
    assert codes is not None
    groups = width // lattice.group
    floor = halves() if lattice.offset_range else None
    return Blocks(
        lattice, codes, halves(), whole(lattice.step_range, groups), floor, whole(lattice.offset_range, groups)
    )


def weights(seed: int = 0, rows: int = 64, width: int = 1024) -> torch.Tensor:
    """Weights of rows of different size, heavy-tailed as trained ones are."""
    random = torch.Generator().manual_seed(seed)
    scale = torch.empty(rows, 1).log_normal_(0, 0.5, generator=random)
    x = 0.02 * scale * torch.randn(rows, width, generator=random)
    return x * torch.empty(rows, width).log_normal_(0, 0.3, generator=random)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_read_alike_by_us_gguf_and_llamacpp(kind: TensorType) -> None:
    blocks = made_up(kind)
    data = pack_blocks(blocks)
    assert data.shape == (7, 512 * BITS[kind] / 8)
    again = unpack_blocks(data, kind)
    for name in ("codes", "scale", "steps", "floor", "offsets"):
        one, two = getattr(blocks, name), getattr(again, name)
        assert (one is None and two is None) or torch.equal(one, two), name
    values = blocks.decode().numpy()
    np.testing.assert_array_equal(values, gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[kind]))
    np.testing.assert_array_equal(values, ggml_peer.decode(data.numpy(), kind, 512))


@pytest.mark.parametrize("important", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_less_than_that_of_llamacpps_own_encoder(kind: TensorType, important: bool) -> None:
    x = weights()
    columns = torch.empty(1024).log_normal_(0, 1, generator=torch.Generator().manual_seed(5)) if important else None
    ours = encode_rows(x, kind, columns).decode().numpy()
    theirs = ggml_peer.decode(
        ggml_peer.encode(x.numpy(), kind, None if columns is None else columns.numpy()), kind, 1024
    )
    share = 1.0 if columns is None else columns.numpy()
    error, other = (((found - x.numpy()) ** 2 * share).sum(-1) for found in (ours, theirs))
    assert error.sum() < 0.99 * other.sum()
    assert (error <= other * 1.02).mean() > 0.95, "row by row too"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_lie_on_the_lattice_stay(kind: TensorType) -> None:
    """What was quantized once loses next to nothing the second time; in 4 and 5 bits of 32 weights, as QAT bases are
    stored, not a bit."""
    first = encode_rows(weights(3), kind).decode()
    again = encode_rows(first, kind).decode()
    assert (again - first).square().sum() <= 0.05 * (first - weights(3)).square().sum()
    if kind in ("Q4_0", "Q5_0"):
        assert torch.equal(again, first)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zero_and_unimportant_blocks_are_rounded_all_the_same(kind: TensorType) -> None:
    x = weights(1, rows=4)
    x[1] = 0
    x[2, :256] = 0
    columns = torch.ones(1024)
    columns[256:512] = 0
    found = encode_rows(x, kind, columns).decode()
    assert found.isfinite().all()
    assert found[1].abs().max() == found[2, :256].abs().max() == 0
    left = (found - x)[0, 256:512].square().sum() / x[0, 256:512].square().sum()
    assert left < 0.02


def test_rows_may_have_an_importance_of_their_own() -> None:
    x = weights(2, rows=2)
    shares = torch.rand(2, 1024, generator=torch.Generator().manual_seed(1))
    both = encode_rows(x, "Q4_K", shares)
    alone = [encode_rows(x[row : row + 1], "Q4_K", shares[row]) for row in range(2)]
    assert torch.equal(both.codes, join_blocks(alone, 0).codes)
    assert torch.equal(both.decode()[1:], alone[1].decode())


def test_blocks_are_as_wide_as_the_table_says() -> None:
    assert {kind: lattice.block for kind, lattice in LATTICES.items()} == {kind: BLOCKS[kind] for kind in LATTICES}
    assert all(lattice.block % lattice.group == 0 for lattice in LATTICES.values())
