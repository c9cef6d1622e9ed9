"""What only a GPU can show, and Triton's kernels in its interpreter where Triton is installed without one.

Skipped where neither is there: torch's CPU builds come without Triton.
"""

from __future__ import annotations

import pytest
import torch

from gemma_ops.kernels import attention_packed, attention_spans, ops_reference
from gemma_ops.kernels.ops_runner import OpRunner
from tests.helpers.triton_interpreter import interpreted, needs_gpu, needs_triton


def near(ours, theirs, limit):
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    error = (ours.float() - theirs.float()).abs().max() / (theirs.float().abs().max() + 1e-9)
    assert error < limit, error


def compare(device):
    """Every Triton kernel beside its body, in both types, with strides, several rows and without weights."""
    from gemma_ops.kernels import ops_triton

    torch.manual_seed(0)

    def random(*shape, dtype):
        return torch.randn(*shape, dtype=dtype, device=device)

    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        for batch, tokens, width in ((1, 5, 48), (2, 3, 64)):
            x, g, s = (random(batch, tokens, width, dtype=dtype) for _ in range(3))
            scale = torch.tensor([0.7], dtype=dtype, device=device)
            for weight in (random(width, dtype=dtype), None):
                (y, rstd), (truth, other) = (room.norm(x, weight, 1e-6) for room in (ops_triton, ops_reference))
                near(y, truth, limit)
                near(rstd, other, 1e-6)
                near(
                    ops_triton.norm_backward(g, x, weight, rstd), ops_reference.norm_backward(g, x, weight, rstd), limit
                )
                for factor in (scale, None):
                    (y, rstd), (truth, _) = (
                        room.add_norm(s, x, weight, factor, 1e-6) for room in (ops_triton, ops_reference)
                    )
                    near(y, truth, limit)
                    pairs = (room.add_norm_backward(g, x, weight, factor, rstd) for room in (ops_triton, ops_reference))
                    for ours, theirs in zip(*pairs, strict=True):
                        near(ours, theirs, limit)
            q = random(batch, tokens, 3, 16, dtype=dtype)
            outer = random(batch, 3, tokens, 16, dtype=dtype).transpose(1, 2)
            cos, sin = (random(1, tokens, 16, dtype=dtype).expand(batch, -1, -1) for _ in range(2))
            weight = random(16, dtype=dtype)
            (y, rstd), (truth, _) = (room.rotated(q, weight, cos, sin, 1e-6) for room in (ops_triton, ops_reference))
            near(y, truth, limit)
            ours, theirs = (
                room.rotated_backward(outer, q, weight, cos, sin, rstd)[0] for room in (ops_triton, ops_reference)
            )
            near(ours, theirs, limit)
            part = random(batch, tokens, 4, width, dtype=dtype)[:, :, 1]  # a layer's own per-layer input: strided
            near(ops_triton.geglu(x, part), ops_reference.geglu(x, part), limit)
            for ours, theirs in zip(
                *(room.geglu_backward(g, x, part) for room in (ops_triton, ops_reference)), strict=True
            ):
                near(ours, theirs, limit)
        scores, lse = random(2, 12, 6, dtype=torch.float32), random(2, 12, 1, dtype=torch.float32)
        outer, delta = random(2, 12, 6, dtype=dtype), random(2, 12, 1, dtype=torch.float32)
        real = torch.ones(2, 12, 1, device=device)
        real[1, 3] = 0
        for one in (None, real):
            pairs = (
                room.softmax_backward(scores, outer, lse, delta, one, 4, 0.7) for room in (ops_triton, ops_reference)
            )
            for ours, theirs in zip(*pairs, strict=True):
                near(ours, theirs, limit)


@needs_triton
def test_triton_kernels_are_their_bodies_in_the_interpreter():
    interpreted(__name__, "compare('cpu')")


@needs_gpu
def test_triton_kernels_are_their_bodies():
    for _ in range(2):  # compiled, and then started directly
        compare("cuda")


@needs_gpu
@pytest.mark.parametrize(("width", "window"), [(256, 512), (512, None)])
@pytest.mark.parametrize("form", ["flash", "efficient", "mixed", "tiled"])
@pytest.mark.parametrize("heads", [(8, 1), (16, 2)])
def test_attention_of_packed_rows_is_that_of_each_document(form, width, window, heads):
    if (form == "flash") != (width == 256):
        pytest.skip("flash takes heads up to 256, the others have no window")
    cuts = [0, 300, 301, 900, 2048]
    torch.manual_seed(0)
    q, k, v, g = (torch.randn(cuts[-1], n, width, device="cuda") for n in (heads[0], heads[1], heads[1], heads[0]))
    q, k = q * width**-0.25, k * width**-0.25
    row = attention_spans.documents(cuts)
    row.cuts(1, cuts[-1])
    object.__setattr__(row, "run", OpRunner(compiled=True))

    def run(dtype, attend):
        leaves = [states.to(dtype).requires_grad_() for states in (q, k, v)]
        out = attend(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, g.to(dtype))]

    def truth(q, k, v):
        from gemma_ops.kernels import attention_eager

        kept, attention_packed.choose_kernel = attention_packed.choose_kernel, lambda *_: None
        try:
            states = (one.transpose(0, 1)[None] for one in (q, k, v))
            return attention_eager.attend(*states, row, window, 1.0, 0.0)[0].transpose(0, 1)
        finally:
            attention_packed.choose_kernel = kept

    ours = run(torch.bfloat16, lambda q, k, v: getattr(attention_packed, form)(q, k, v, row, window, 1.0))
    for mine, theirs in zip(ours, run(torch.float32, truth), strict=True):
        assert (mine.float() - theirs).norm() / theirs.norm() < 0.02
