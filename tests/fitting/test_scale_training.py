"""Training of scales: weights of the file while it learns, schedules, batches, and what moves to a device."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from gemma_ops.family.formats import TensorType
from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.fitted_store import FittedStore
from gemma_ops.fitting.lattice_weight import LatticeWeight, put_lattice, trained_half
from gemma_ops.fitting.packed_rows import packed_passes
from gemma_ops.fitting.scale_training import rate_share, row_batches
from gemma_ops.ggml.encoding import encode_rows

KINDS: tuple[TensorType, ...] = ("Q4_0", "Q5_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def weight(seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.randn(6, 512, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_that_is_trained_is_the_one_that_the_file_will_hold(kind: TensorType) -> None:
    blocks = encode_rows(weight(), kind)
    lattice = LatticeWeight(blocks, torch.Size((2, 3, 512)), torch.float32)
    assert torch.equal(lattice().detach().reshape(6, 512), blocks.decode())
    with torch.no_grad():
        for parameter in lattice.parameters():
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    changed = lattice.trained_blocks()
    assert torch.equal(lattice().detach().reshape(6, 512), changed.decode())
    assert torch.equal(changed.codes.short(), blocks.codes)
    assert not torch.equal(changed.decode(), blocks.decode())
    (lattice() * weight(3).view(2, 3, 512)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in lattice.parameters())


def test_a_scale_is_rounded_to_float16_with_the_gradient_of_the_unrounded() -> None:
    start, change = torch.tensor([0.1234567]), torch.tensor([0.01], requires_grad=True)
    value = trained_half(start, change)
    assert value.item() == value.half().item()
    value.backward()
    assert change.grad is not None
    assert change.grad.item() == pytest.approx(0.1234567 * 1.01005, rel=1e-4)


def test_all_that_a_weight_computes_with_moves_along() -> None:
    lattice = LatticeWeight(encode_rows(weight(), "Q4_K"), torch.Size((6, 512)), torch.bfloat16).to("meta")
    found = lattice()
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.bfloat16, (6, 512))


def test_a_layer_has_the_weight_only_while_it_computes() -> None:
    layer = torch.nn.Linear(512, 6, bias=False)
    blocks = encode_rows(weight(), "Q4_0")
    put_lattice(layer, "weight", LatticeWeight(blocks, torch.Size((6, 512)), torch.float32))
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(x), x @ blocks.decode().t())
    assert not hasattr(layer, "weight")


def test_the_rate_rises_and_falls_to_nothing() -> None:
    shares = [rate_share(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.2)
    assert max(shares) == 1.0
    assert shares.index(1.0) == 4
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[-1] < 1e-3


def test_every_row_is_seen_before_one_comes_again_and_the_order_is_the_seeds() -> None:
    batches = list(row_batches(12, batch=4, steps=6, seed=3))
    assert sorted(row for batch in batches[:3] for row in batch) == list(range(12))
    assert batches == list(row_batches(12, batch=4, steps=6, seed=3))
    assert batches[:3] != batches[3:]
    assert batches != list(row_batches(12, batch=4, steps=6, seed=4))


def test_rows_share_a_pass_up_to_its_tokens() -> None:
    rows = [FitRow([1] * size, [False] * size) for size in (1000, 900, 300, 3000, 10)]
    assert list(packed_passes(rows, range(5))) == [[0, 1], [2], [3], [4]]
    assert list(islice(packed_passes(rows, [4, 2]), 3)) == [[4, 2]]


def test_a_store_keeps_rounded_and_trained_apart(tmp_path) -> None:
    store = FittedStore(tmp_path)
    blocks = encode_rows(weight(), "Q5_K")
    assert "a" not in store
    store.write_rounded("a", blocks)
    store.write_trained("a", b"trained")
    assert store.read("a") == b"trained"
    again = FittedStore(tmp_path).read_rounded("a", "Q5_K", 6)
    assert torch.equal(again.decode(), blocks.decode())
    assert store.load_state() is None
    store.save_state({"step": 3})
    assert store.load_state() == {"step": 3}
