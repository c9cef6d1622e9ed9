"""Bytes of `planning.memory` against a simulation of the real graph, and against what other trainers report.

The simulated numbers come from running transformers 5.23 + PEFT 0.21 + TRL's fused head at true dimensions on fake
tensors (shapes without memory, CPU kernels, rank 16, one row): what autograd keeps, and the peak of live bytes.
"""

from __future__ import annotations

import pytest

from gemma_ops import family
from gemma_ops.planning import memory
from gemma_ops.planning.memory import GIB, Step


def _step(key, weights="bf16", *, checkpointing, length=2048, rank=16, triton=False, **more):
    linears = tuple(family.lora_linears(family.SIZES[key].shape))
    return Step(weights, rank, linears, 1, length, checkpointing, triton=triton, **more)


def _kept(key, weights="bf16", **more):
    """KiB per token that the forward pass keeps."""
    step = _step(key, weights, **more)
    return memory.activations(family.SIZES[key].shape, step)[0].bytes / step.tokens / 1024


def _above_weights(key, **more):
    """GiB of activations and workspace at the peak."""
    step = _step(key, **more)
    return sum(part.bytes for part in memory.activations(family.SIZES[key].shape, step)) / GIB


def _weights(key, dtype, **more):
    return sum(part.bytes for part in memory.weights(family.SIZES[key].shape, dtype, **more)) / GIB


@pytest.mark.parametrize(
    ("key", "free", "checkpointed"),
    [
        ("E2B", 5201.8, 163.8),
        ("E4B", 8075.6, 283.3),
        ("12B", 14_232.7, 375.0),
        ("26B-A4B", 8826.4, 176.0),
        ("31B", 28_177.4, 651.0),
    ],
)
def test_kept_activations_equal_the_simulation_to_half_a_percent(key, free, checkpointed):
    assert _kept(key, checkpointing=False) == pytest.approx(free, rel=0.005)
    assert _kept(key, checkpointing=True) == pytest.approx(checkpointed, rel=0.005)


def test_kept_activations_in_float32():
    assert _kept("E2B", "fp32", checkpointing=False) == pytest.approx(8203.7, rel=0.005)
    assert _kept("E2B", "fp32", checkpointing=True) == pytest.approx(286.3, rel=0.005)


@pytest.mark.parametrize(
    ("key", "length", "checkpointing", "gib"),
    [
        ("E2B", 2048, True, 2.54),
        ("E2B", 2048, False, 12.36),
        ("E2B", 8192, True, 5.90),
        ("E2B", 8192, False, 48.23),
        ("E4B", 2048, True, 2.79),
        ("E4B", 2048, False, 17.99),
        ("12B", 2048, True, 2.98),
        ("26B-A4B", 2048, True, 2.58),
        ("26B-A4B", 2048, False, 19.46),
        ("31B", 2048, True, 3.53),
        ("31B", 2048, False, 57.28),
    ],
)
def test_peak_of_a_step_equals_the_simulation_to_five_percent(key, length, checkpointing, gib):
    assert _above_weights(key, length=length, checkpointing=checkpointing) == pytest.approx(gib, rel=0.05)


@pytest.mark.parametrize(
    ("key", "length", "gib"),
    [("E2B", 2048, 0.863), ("E4B", 8192, 4.616), ("12B", 2048, 1.555), ("26B-A4B", 2048, 1.484), ("31B", 8192, 10.771)],
)
def test_peak_inside_a_recomputed_layer(key, length, gib):
    """Without the head, which is small where it runs as a Triton kernel: kept inputs, one layer again, its gradients."""
    shape, step = family.SIZES[key].shape, _step(key, checkpointing=True, length=length, triton=True)
    assert sum(part.bytes for part in memory.activations(shape, step)) / GIB == pytest.approx(gib, rel=0.07)


@pytest.mark.parametrize(
    ("key", "bf16", "nf4"),
    [("E2B", 8.6, 6.1), ("E4B", 13.9, 8.5), ("12B", 22.2, 7.1), ("26B-A4B", 47.0, 13.2), ("31B", 57.2, 16.7)],
)
def test_weights_loaded_for_text(key, bf16, nf4):
    assert _weights(key, "bf16") == pytest.approx(bf16, abs=0.1)
    assert _weights(key, "nf4") == pytest.approx(nf4, abs=0.1)
    assert _weights(key, "fp32") == pytest.approx(2 * _weights(key, "bf16"))


def test_experts_in_4bit_save_31_gib():
    experts = {dtype: memory.weights(family.SIZES["26B-A4B"].shape, dtype)[1].bytes / GIB for dtype in ("bf16", "nf4")}
    assert experts["bf16"] - experts["nf4"] == pytest.approx(31.6, abs=0.1)


@pytest.mark.parametrize(
    ("key", "dtype", "gib"),
    # `max_memory_reserved` after loading, as printed in Unsloth's published notebooks, where the towers are loaded too.
    [("31B", "nf4", 18.57), ("12B", "bf16", 22.43), ("E2B", "bf16", 10.10)],
)
def test_weights_and_towers_lie_just_below_published_reserved_memory(key, dtype, gib):
    counts = family.SIZES[key].shape.counts()
    loaded = _weights(key, dtype) + 2 * (counts.vision + counts.audio) / GIB
    assert gib * 0.93 < loaded < gib


@pytest.mark.parametrize(
    ("key", "weights", "rank", "length", "gib"),
    # Peaks reserved in training: Unsloth's notebooks (rows of 1,024 at most), axolotl's examples (2,048, packed).
    [
        ("31B", "nf4", 8, 1024, 21.43),
        ("12B", "bf16", 8, 1024, 24.85),
        ("31B", "nf4", 16, 2048, 25.2),
        ("12B", "bf16", 16, 2048, 27.76),
    ],
)
def test_whole_steps_lie_near_published_peaks(key, weights, rank, length, gib):
    step = _step(key, weights, checkpointing=True, length=length, rank=rank, triton=True)
    table = memory.parts(family.SIZES[key].shape, step, cuda=True)
    total = sum(part.bytes for part in table) / GIB
    # Up to a sixth: other trainers keep towers, attend and checkpoint differently.
    assert total == pytest.approx(gib, rel=0.17)


def test_adapter_bytes():
    shape = family.SIZES["31B"].shape
    step = _step("31B", checkpointing=True)
    assert step.adapter_parameters == 122_429_440  # r 16 on the seven linears, counted on the model
    assert sum(part.bytes for part in memory.adapter(step)) == 16 * 122_429_440
    assert _step("31B", checkpointing=True, rank=32).adapter_parameters == 2 * 122_429_440
    narrow = tuple(family.lora_linears(shape, r".*\.q_proj"))
    assert Step("bf16", 16, narrow, 1, 64, checkpointing=True).adapter_parameters < 122_429_440 / 4


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("weights", ["bf16", "nf4", "fp32"])
def test_longer_rows_more_rows_and_higher_ranks_need_more(checkpointing, weights):
    shape = family.SIZES["E4B"].shape
    linears = tuple(family.lora_linears(shape))

    def total(rows, length, rank):
        step = Step(weights, rank, linears, rows, length, checkpointing)
        return sum(part.bytes for part in memory.parts(shape, step, cuda=True))

    lengths = [total(2, length, 16) for length in (256, 512, 1024, 2048, 4096, 8192)]
    assert lengths == sorted(set(lengths))
    assert total(1, 2048, 16) < total(2, 2048, 16) < total(4, 2048, 16)
    assert total(1, 2048, 8) < total(1, 2048, 16) < total(1, 2048, 64)


def test_checkpointing_and_fused_attention_save_memory():
    assert _above_weights("E2B", checkpointing=True) < _above_weights("E2B", checkpointing=False)
    fused = _kept("E2B", checkpointing=False)
    scores = _kept("E2B", checkpointing=False, fused_attention=False)
    assert scores - fused == pytest.approx(35 * 8 * 4 * 2048 / 1024)  # layers x heads x float32 x keys
