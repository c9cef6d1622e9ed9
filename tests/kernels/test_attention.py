"""Attention by documents and windows is that of the whole masked square: packed, padded, windowed, cached, with
images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.nn import functional

from gemma_ops import kernels
from gemma_ops.config.training_sections import KernelsConfig
from gemma_ops.kernels import attention_eager, attention_tiled
from gemma_ops.kernels import attention_packed as rows
from gemma_ops.kernels import attention_spans as patterns
from gemma_ops.kernels.ops_runner import EAGER, OpRunner
from tests.helpers.kernel_models import LENGTHS, build, documents, exact, packed, relative
from tests.helpers.tiny_models import KINDS

SETTINGS = KernelsConfig()


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_document_is_the_document_alone(kind):
    model, docs = build(kind), documents()
    alone = torch.cat([model(input_ids=doc, use_cache=False).logits[0] for doc in docs]).detach()
    kernels.install_kernels(model, SETTINGS)
    batch = packed(docs)
    with torch.no_grad():
        by_bounds = model(**batch).logits[0]
        by_positions = model(**{key: value for key, value in batch.items() if key != "cu_seq_lens_q"}).logits[0]
    assert relative(by_bounds, alone) < exact(kind)
    assert relative(by_positions, alone) < exact(kind)


@pytest.mark.parametrize("kind", ["e2b", "dense31"])
def test_every_layer_type_sees_its_document_only(kind):
    """The states after each layer, and that the measure sees a leak: without bounds and positions there is one."""
    model, docs = build(kind), documents()
    wants = [model.model(input_ids=doc, use_cache=False, output_hidden_states=True).hidden_states for doc in docs]
    kernels.install_kernels(model, SETTINGS)
    batch = packed(docs)
    with torch.no_grad():
        got = model.model(**batch, output_hidden_states=True).hidden_states
        leaking = model.model(input_ids=batch["input_ids"], use_cache=False, output_hidden_states=True).hidden_states
    for layer, states in enumerate(got):
        want = torch.cat([hidden[layer][0] for hidden in wants])
        assert relative(states[0], want) < 1e-5
        assert layer == 0 or relative(leaking[layer][0], want) > 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(kind, left):
    model, docs = build(kind), documents()
    longest = max(LENGTHS)
    ids = torch.zeros(len(docs), longest, dtype=torch.long)
    real = torch.zeros_like(ids)
    for row, doc in enumerate(docs):
        size = doc.shape[1]
        where = slice(longest - size, longest) if left else slice(0, size)
        ids[row, where], real[row, where] = doc[0], 1
    batch = {"input_ids": ids, "attention_mask": real, "position_ids": (real.cumsum(1) - 1).clamp(0)}
    with torch.no_grad():
        want = model(**batch, use_cache=False).logits[real.bool()]
        kernels.install_kernels(model, SETTINGS)
        assert relative(model(**batch, use_cache=False).logits[real.bool()], want) < exact(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_is_transformers_own(kind):
    model, doc = build(kind), documents([40])[0]
    padded = torch.cat([torch.zeros(1, 9, dtype=torch.long), doc[:, :31]], 1)
    batch = {"input_ids": torch.cat([doc, padded]), "attention_mask": torch.ones(2, 40, dtype=torch.long)}
    batch["attention_mask"][1, :9] = 0
    asked = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": []}
    want = model.generate(**batch, **asked)
    kernels.install_kernels(model, SETTINGS)
    assert torch.equal(model.generate(**batch, **asked), want)


@pytest.mark.parametrize("kind", ["multimodal", "unified"])
def test_images_are_seen_in_both_directions_within_their_document(kind):
    model = build(kind, use_bidirectional_attention="vision")
    docs = documents([30, 25])
    types = [torch.zeros_like(doc) for doc in docs]
    types[0][0, 4:24] = 1  # longer than the window
    types[1][0, :6] = 1  # begins where a document begins: must not join the image before
    types[1][0, 10:13] = 1
    kwargs = {"use_cache": False}
    text = model.model.language_model

    def run(batch, kinds):
        # the text model's masks with image types, on embeddings of words: no pixels are needed
        return model.model(**batch, mm_token_type_ids=kinds, **kwargs).last_hidden_state[0]

    with torch.no_grad():
        alone = torch.cat([run({"input_ids": doc}, kind_) for doc, kind_ in zip(docs, types, strict=True)])
        causal = torch.cat([run({"input_ids": doc}, torch.zeros_like(doc)) for doc in docs])
        kernels.install_kernels(model, SETTINGS)
        batch = packed(docs)
        batch.pop("use_cache")
        ours = run(batch, torch.cat(types, 1))
    assert text.config._attn_implementation == "gemma_ops"
    assert relative(ours, alone) < 1e-5
    assert relative(causal, alone) > 0.01  # the measure sees whether images are bidirectional


def test_images_that_touch_at_a_border_are_two():
    """A document that ends in an image before one that begins with an image: transformers' numbers would join them."""
    spans = patterns.documents([0, 4, 8]).spans
    types = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 2]])
    assert patterns.image_numbers(types, spans).tolist() == [[-1, -1, 0, 0, 1, 1, -1, 2]]


@pytest.mark.parametrize("length", [1, 16, 17, 64, 100])
def test_a_window_is_the_full_masked_square(monkeypatch, length):
    monkeypatch.setattr(attention_eager, "BLOCK", 24)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 8, requires_grad=True) for heads in (4, 2, 2))
    outer = torch.randn(1, 4, length, 8)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None]

    def square(window):
        mask = (distance >= 0) & (distance < window)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    want, got = square(16), attention_eager.causal(query, key, value, 16, None, 0.0)
    assert relative(got, want) < 1e-6
    leaves = (query, key, value)
    pairs = zip(torch.autograd.grad(got, leaves, outer), torch.autograd.grad(want, leaves, outer), strict=True)
    # gradients of scores between one key and itself are zero, so those of a single token are compared absolutely
    assert all(float((a - b).abs().max()) < 1e-5 for a, b in pairs)
    assert length <= 16 or relative(square(17), want) > 1e-3  # one key more would show


@pytest.mark.parametrize(("heads", "groups"), [(8, 1), (4, 2), (6, 6)])
def test_tiles_are_the_documents_one_by_one(monkeypatch, heads, groups):
    monkeypatch.setattr(attention_tiled, "BLOCK", 32)
    monkeypatch.setattr(attention_tiled, "STEP", 8)
    monkeypatch.setattr(attention_tiled, "SCORES", 8 * 40 * 40)
    cuts = [0, 5, 17, 18, 100, 130, 137, 200]
    torch.manual_seed(0)
    leaves = [torch.randn(200, count, 16, requires_grad=True) for count in (heads, groups, groups)]
    outer = torch.randn(200, heads, 16)
    row = patterns.documents(cuts)
    assert row.cuts(1, 200) == cuts
    got = rows.tiled(*leaves, row, None, 0.3)
    want = attention_eager.attend(*(leaf.transpose(0, 1)[None] for leaf in leaves), row, None, 0.3, 0.0)[0].transpose(
        0, 1
    )
    assert relative(got, want) < 1e-6
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, outer), torch.autograd.grad(want, leaves, outer), strict=True
    ):
        assert relative(ours, theirs) < 1e-5


def test_tiles_compile_once_for_all_lengths(monkeypatch):
    monkeypatch.setattr(attention_tiled, "BLOCK", 32)
    run = OpRunner(compiled=True, strict=True)
    torch.manual_seed(0)
    for cuts in ([0, 5, 17, 80], [0, 9, 50, 60], [0, 70]):
        leaves = [torch.randn(cuts[-1], count, 16, requires_grad=True) for count in (4, 2, 2)]
        jobs = attention_tiled.plan_tiles(cuts, 4, torch.device("cpu"))
        outs = [attention_tiled.attend(*leaves, jobs, 0.3, how) for how in (run, EAGER)]
        outer = torch.randn_like(outs[0])
        assert relative(*outs) < 1e-6
        for ours, theirs in zip(*(torch.autograd.grad(out, leaves, outer) for out in outs), strict=True):
            assert relative(ours, theirs) < 1e-5


def test_the_gpu_form_follows_shapes_and_is_never_taken_here(monkeypatch):
    monkeypatch.setattr(rows, "_wide", lambda: None)  # our own kernels ask the device that isn't here what it can
    row = patterns.documents([0, 10, 30])
    wide, narrow = (torch.empty(1, 2, 30, width, dtype=torch.bfloat16) for width in (512, 256))
    assert rows.choose_kernel(narrow, narrow, row, 16) is None  # this is a CPU

    def cuda(states):
        return SimpleNamespace(device=torch.device("cuda"), dtype=states.dtype, shape=states.shape)

    assert rows.choose_kernel(cuda(narrow), cuda(narrow), row, 16) is rows.flash
    assert rows.choose_kernel(cuda(wide), cuda(wide), row, None) is rows.mixed
    many = torch.empty(1, 32, 30, 512, dtype=torch.bfloat16)
    assert rows.choose_kernel(cuda(many), cuda(many), row, None) is rows.efficient
    long = patterns.documents([0, rows.LONG + 1])
    states = cuda(torch.empty(1, 2, rows.LONG + 1, 512, dtype=torch.bfloat16))
    assert rows.choose_kernel(states, states, long, None) is rows.tiled
    assert rows.choose_kernel(cuda(narrow.float()), cuda(narrow.float()), row, 16) is None  # flash takes no float32
    dropped = row.kept([(3, 8)])
    assert rows.choose_kernel(cuda(narrow), cuda(narrow), dropped, 16) is None


def test_flash_has_the_operator_of_this_torch():
    """On the meta device, which checks names, order and shapes of arguments and gives back shapes."""
    row = patterns.documents([0, 10, 30])
    leaves = [
        torch.empty(30, heads, 256, dtype=torch.bfloat16, device="meta", requires_grad=True) for heads in (8, 1, 1)
    ]
    out = rows.flash(*leaves, row, 16, 1.0) if row.cuts(1, 30) else None
    assert out.shape == (30, 8, 256)
    assert [g.shape for g in torch.autograd.grad(out, leaves, torch.empty_like(out))] == [leaf.shape for leaf in leaves]
    names = [argument.name for argument in torch.ops.aten._efficient_attention_backward.default._schema.arguments]
    assert names[:5] == ["grad_out_", "query", "key", "value", "bias"]
    assert names[5:16] == [
        "out", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "logsumexp", "dropout_p", "philox_seed",
        "philox_offset", "custom_mask_type", "bias_requires_grad",
    ]  # fmt: skip


def test_padding_is_a_document_of_its_own_in_flat_rows():
    row = patterns.padded_rows(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]))
    assert row.cuts(2, 4) == [0, 3, 4, 5, 8]


@pytest.mark.parametrize("bounds", [[0, 10], [1, 30], [0, 20, 20, 30], [0, 31]])
def test_wrong_bounds_are_refused(bounds):
    model = kernels.install_kernels(build("dense31"), SETTINGS)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(input_ids=torch.ones(1, 30, dtype=torch.long), cu_seq_lens_q=bounds)


def test_bounds_go_with_one_row_and_no_mask():
    model = kernels.install_kernels(build("dense31"), SETTINGS)
    with pytest.raises(ValueError, match="one row"):
        model(input_ids=torch.ones(2, 30, dtype=torch.long), cu_seq_lens_q=[0, 30])
    assert transformers.AttentionInterface()["gemma_ops"] is not None
