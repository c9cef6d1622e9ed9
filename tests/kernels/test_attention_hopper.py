"""Attention of heads 512 wide: Triton's kernels beside a masked softmax in float64, forward and backward.

Without a GPU they run in Triton's interpreter, where Triton is installed; torch's CPU builds come without it.
"""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from tests.helpers.triton_interpreter import GPU, TRITON, interpreted, needs_triton

needs_hopper = pytest.mark.skipif(
    not (GPU and TRITON and torch.cuda.get_device_capability()[0] == 9), reason="needs a Hopper GPU and Triton"
)
LIMITS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
CASES = [
    ((0, 1, 70, 71, 133, 150), 8, 1),  # documents of one token, blocks with several, an end inside of a block
    ((0, 97), 6, 2),  # one document; heads of a group that don't divide a block
    ((0, 2), 4, 4),  # less than a block, a head of keys for each
]


def bounds(cuts, device):
    """`starts` and `stops` of every token, as callers make them."""
    spans = [(start, stop, stop - start) for start, stop in pairwise(cuts)]
    made = ([span[side] for span in spans for _ in range(span[2])] for side in (0, 1))
    return [torch.tensor(one, dtype=torch.int32, device=device) for one in made]


def truth(query, key, value, starts, scale):
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    place = torch.arange(len(query), device=query.device)
    seen = (place <= place[:, None]) & (place >= starts[:, None])
    scores = torch.einsum("ihd,jhd->hij", query, key) * scale
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, float("-inf")).softmax(-1), value)


def states(tokens, heads, groups, width, dtype, device):
    """Query, key, value and a gradient; keys and values are views of one tensor, as of a projection of all."""
    torch.manual_seed(0)
    query, outer = (torch.randn(tokens, heads, width, device=device).to(dtype) for _ in range(2))
    both = torch.randn(tokens, 2 * groups, width, device=device).to(dtype)
    return query, both[:, :groups], both[:, groups:], outer


def run(attend, leaves, outer, dtype):
    leaves = [one.detach().to(dtype).requires_grad_() for one in leaves]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, outer.to(dtype))]


def near(ours, theirs, limit):
    for one, other, name in zip(ours, theirs, ("out", "query", "key", "value"), strict=True):
        error = ((one.double() - other).norm() / (other.norm() + 1e-3)).item()
        assert error < limit, (name, error)


def compare(device, cases, widths, dtypes):
    for dtype, (cuts, heads, groups), width in product(dtypes, cases, widths):
        beside(device, dtype, cuts, heads, groups, width, LIMITS[dtype])


def beside(device, dtype, cuts, heads, groups, width, limit):
    from gemma_ops.kernels import attention_hopper

    query, key, value, outer = states(cuts[-1], heads, groups, width, dtype, device)
    starts, stops = bounds(cuts, device)
    scale = width**-0.5
    ours = run(
        lambda *leaves: attention_hopper.attend(*leaves, starts, stops, scale), (query, key, value), outer, dtype
    )
    exact = run(lambda *leaves: truth(*leaves, starts, scale), (query, key, value), outer, torch.float64)
    assert all(one.dtype == dtype for one in ours)
    near(ours, exact, limit)


def beside_softmax():
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    import numpy as np
    from triton.runtime import interpreter

    plain_tensor, plain_dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch(tensor, scope):  # numpy 2.5 takes no array of one number for an integer
        plain_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def dot(self, a, b, d, *rest):  # the interpreter of 3.6 multiplies the bits of bfloat16
        if a.dtype == interpreter.tl.bfloat16:
            wide = ((one.data.astype(np.uint32) << 16).view(np.float32) for one in (a, b))
            a, b = (interpreter.TensorHandle(one, interpreter.tl.float32) for one in wide)
        return plain_dot(self, a, b, d, *rest)

    interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot = patch, dot
    from gemma_ops.kernels import attention_hopper

    compare("cpu", CASES, (128,), (torch.float32,))
    compare("cpu", CASES[:1], (128,), (torch.bfloat16,))
    compare("cpu", [((0, 40, 77), 8, 2)], (512,), (torch.float32,))
    attention_hopper.PROGRAMS = 1  # a part for all heads of a group
    compare("cpu", CASES[:1], (128,), (torch.float16,))
    # A key that a document does not see changes nothing of it: exactly, not by a little.
    query, key, value, outer = states(150, 8, 1, 128, torch.float32, "cpu")
    starts, stops = bounds(CASES[0][0], "cpu")
    found = []
    for other in (0.0, 100.0):
        moved = [one.clone() for one in (query, key, value)]
        for one in moved:
            one[71:133] += other
        found.append(
            run(lambda *leaves: attention_hopper.attend(*leaves, starts, stops, 0.1), moved, outer, torch.float32)
        )
    for one, again in zip(*found, strict=True):
        assert torch.equal(one[:71], again[:71])
        assert torch.equal(one[133:], again[133:])
        assert not torch.equal(one, again)
    with pytest.raises(ValueError, match="heads of 64"):
        attention_hopper.attend(query[..., :64], key[..., :64], value[..., :64], starts, stops, 0.1)


@pytest.mark.slow
@needs_triton
def test_wide_attention_is_masked_softmax_in_the_interpreter():
    interpreted(__name__, "beside_softmax()")


@pytest.mark.skipif(not TRITON, reason="needs Triton")
def test_only_a_hopper_fits():
    from gemma_ops.kernels import attention_hopper

    assert not attention_hopper.fits_hopper(torch.device("cpu"))
    if GPU:
        assert attention_hopper.fits_hopper(torch.device("cuda")) == (torch.cuda.get_device_capability()[0] == 9)


@needs_hopper
@pytest.mark.parametrize(("heads", "groups"), [(8, 1), (8, 2), (16, 2), (32, 4)])
def test_wide_attention_is_masked_softmax(heads, groups):
    cases = [((0, 300, 301, 900, 1531), heads, groups), ((0, 1100), heads, groups)]
    for _ in range(2):  # compiled, and then started directly
        compare("cuda", cases, (512,), (torch.bfloat16,))


@needs_hopper
def test_a_graph_holds_it_for_other_documents():
    from gemma_ops.kernels import attention_hopper

    query, key, value, outer = states(700, 8, 1, 512, torch.bfloat16, "cuda")
    starts, stops = bounds((0, 700), "cuda")

    def attend(*leaves):
        return attention_hopper.attend(*leaves, starts, stops, 0.05)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(attend, (query, key, value), outer, torch.bfloat16)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        held = run(attend, (query, key, value), outer, torch.bfloat16)
    for cuts in ((0, 700), (0, 1, 65, 400, 700)):
        for kept, made in zip((starts, stops), bounds(cuts, "cuda"), strict=True):
            kept.copy_(made)
        graph.replay()
        for ours, plain in zip(held, run(attend, (query, key, value), outer, torch.bfloat16), strict=True):
            assert torch.equal(ours, plain)  # and the same every time
