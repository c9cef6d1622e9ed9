"""The head with Triton's kernel between its products is as near to float64 as the one in torch's operations, and holds
less.

In Triton's interpreter where Triton is installed without a GPU; on a GPU also inside a captured graph.
"""

from __future__ import annotations

import pytest
import torch

from gemma_ops.kernels import head_tiles, lora_casts
from tests.helpers.kernel_models import relative
from tests.helpers.triton_interpreter import interpreted, needs_gpu, needs_triton

CAP = 30.0


def made(device, tokens=50, entries=1501, width=32):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width)
    weight = torch.randn(entries, width) * 3 / width**0.5
    labels = torch.randint(0, entries, (tokens,))
    labels[:20] = (hidden @ weight.t()).argmax(1)[:20]  # some confident tokens
    labels[20:22] = torch.tensor([0, entries - 1])
    return hidden.to(device, torch.bfloat16), weight.to(device, torch.bfloat16), labels.to(device)


def truth(hidden, weight, labels):
    hidden = hidden.double().requires_grad_()
    logits = CAP * torch.tanh(hidden @ weight.double().t() / CAP)
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return nll.detach(), torch.autograd.grad(nll.sum(), hidden)[0]


def both(hidden, weight, labels, **asked):
    """Scores of torch's operations, and of the kernel, in tiles that end within rows, entries and blocks."""
    from gemma_ops.kernels import head_triton

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_tiles, "_GPU_TILE", (32, 640))
        patch.setattr(head_tiles, "_CPU_TILE", (32, 640))
        patch.setattr(head_tiles, "_FOLDED_TILE", (32, 640))
        patch.setattr(head_triton, "_BLOCK", 256)
        patch.setattr(head_tiles, "_fold", lambda *_: None)
        plain = head_tiles.score_tiles(hidden, weight, labels, CAP, **asked)
        patch.setattr(head_tiles, "_fold", lambda *_: head_triton.fold)
        return plain, head_tiles.score_tiles(hidden, weight, labels, CAP, **asked)


def compare(device):
    for entries in (1501, 1280):  # tails, and whole tiles of which no place is masked
        hidden, weight, labels = made(device, entries=entries)
        nll, gradient = truth(hidden, weight, labels)
        plain, folded = both(hidden, weight, labels, gradient=True, top=True)
        for name, want in (("nll", nll), ("gradient", gradient)):
            ours, theirs = (relative(getattr(one, name), want) for one in (folded, plain))
            assert ours < 1.05 * theirs + 1e-6, (name, ours, theirs)
        assert relative(folded.total, plain.total) < 1e-5
        assert torch.equal(folded.top, plain.top)
        assert bool(folded.top[:20].any())
        assert not bool(folded.top.all())
        again = both(hidden, weight, labels, gradient=True, top=True)[1]
        assert torch.equal(again.nll, folded.nll)
        assert torch.equal(again.gradient, folded.gradient)
        alone = both(hidden, weight, labels, gradient=False, top=False)[1]
        assert torch.equal(alone.nll, folded.nll)
        assert alone.gradient is None
        assert alone.top is None
        labels[0] = 99_999
        assert bool(both(hidden, weight, labels, gradient=False, top=False)[1].nll[0].isinf())


def forget():
    """The counter-test: a label's own slope that is left in, as its rounding in bfloat16 would be, shows."""
    from gemma_ops.kernels import head_triton

    hidden, weight, labels = made("cpu")
    z = (hidden @ weight.t()) * (-2 / CAP)
    sums = torch.zeros(2, len(z))
    head_triton.fold(z, labels, 0, CAP, sums[0], sums[1], None, slopes=True)
    rows = torch.arange(len(z))
    assert bool((z[rows, labels] == 0).all())
    assert int((z == 0).sum()) == len(z)
    assert bool((sums[1] > 0).all())


@needs_triton
def test_in_the_interpreter_it_is_as_near_to_the_truth():
    interpreted(__name__, "compare('cpu')", "forget()")


@needs_gpu
def test_on_a_gpu_it_is_as_near_to_the_truth():
    for _ in range(2):  # compiled, and then started directly
        compare("cuda")


@needs_gpu
def test_a_captured_graph_scores_again():
    hidden, weight, labels = made("cuda")
    want = head_tiles.score_tiles(hidden, weight, labels, CAP, gradient=True, top=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = head_tiles.score_tiles(hidden, weight, labels, CAP, gradient=True, top=True)
    found.nll.zero_()
    graph.replay()
    assert torch.equal(found.nll, want.nll)
    assert torch.equal(found.gradient, want.gradient)


def test_a_folded_tile_holds_its_logits_only():
    like = torch.empty(1, dtype=torch.bfloat16)
    plain, folded = head_tiles.Tile(4, 8, like, CAP), head_tiles.Tile(4, 8, like, CAP, fold=print)
    sizes = [
        sum(
            buffer.numel() * buffer.element_size() for buffer in vars(tile).values() if isinstance(buffer, torch.Tensor)
        )
        for tile in (plain, folded)
    ]
    assert sizes == [4 * 8 * 10, 4 * 8 * 2]


def test_the_plan_knows_the_tiles():
    from gemma_ops.planning import kept_bytes

    assert head_tiles.tile_of(torch.device("cuda"), folded=True) == kept_bytes._FOLDED_TILE
    assert head_tiles.tile_of(torch.device("cuda")) == kept_bytes._OWN_TILE["cuda"]


def test_a_cpu_folds_in_torch(monkeypatch):
    monkeypatch.setattr(head_tiles, "_kernel", lambda: pytest.fail("asked for on a CPU"))
    hidden, weight, labels = made("cpu")
    assert not lora_casts.widens(weight)
    assert bool(head_tiles.score_tiles(hidden, weight, labels, CAP, gradient=True, top=False).nll.isfinite().all())
