"""Work and time of `planning.speed`: the operations counted, and the roofline against real steps on an H200."""

from __future__ import annotations

import dataclasses

import pytest

from gemma_ops import family
from gemma_ops.bench.training import bench_shapes
from gemma_ops.config import KernelsConfig, RunConfig
from gemma_ops.planning import devices, row_lengths, speed
from gemma_ops.planning.training_step import PassShape
from tests.planning.test_training_memory import CPU, RECORDS, STOCK, recorded


def _step(key, weights="bf16", *, checkpointing="none", length=2048, kernels=STOCK):
    linears = tuple(family.lora_linears(family.SIZES[key].shape))
    return PassShape(weights, 16, linears, length, length, checkpointing, kernels=kernels)


@pytest.mark.parametrize(
    ("name", "arm"),
    [
        (name, arm)
        for name, body in RECORDS["measured"].items()
        for arm in ("gemma-ops", "trl-packed")
        if "absent" not in body["arms"].get(arm, {"absent": ""})
    ],
)
def test_tokens_per_second_of_real_steps_are_known_to_a_quarter(name, arm):
    shape, step, passes, facts, found = recorded(name, arm)
    made = speed.step_speed(
        shape, step, devices.get_device("h200"), slots=sum(passes) / len(passes), padded=1.0, scored=facts["labelled"],
        context=facts["context"] if arm == "gemma-ops" else step.tokens,
    )  # fmt: skip
    assert made.tokens_per_second == pytest.approx(found["tokens_per_second"], rel=0.25)


@pytest.mark.parametrize(("key", "gflop"), [("E2B", 14.05), ("E4B", 28.3), ("26B-A4B", 23.5), ("31B", 186.7)])
def test_operations_per_token_of_stock_trl(key, gflop):
    """With recomputation and every token scored, each attending to 150 others: the mean of 300-token rows."""
    work = speed.token_work(family.SIZES[key].shape, _step(key, checkpointing="all"), context=150, scored=1.0)
    assert work.total / 1e9 == pytest.approx(gflop, rel=0.02)


@pytest.mark.parametrize(("key", "gflop"), [("E2B", 8.77), ("E4B", 17.9), ("26B-A4B", 14.5), ("31B", 122.5)])
def test_operations_per_token_of_our_kernels(key, gflop):
    """Nothing recomputed, 60 % scored, two products in the head, documents of 300 tokens each attending to half."""
    work = speed.token_work(family.SIZES[key].shape, _step(key, kernels=KernelsConfig()), context=300, scored=0.6)
    assert work.total / 1e9 == pytest.approx(gflop, rel=0.03)


def test_frozen_weights_cost_four_operations_each_and_recomputation_six():
    shape = family.SIZES["31B"].shape
    body = shape.active_per_token() - shape.vocab * shape.hidden
    plain, again, inside = (
        speed.token_work(shape, _step("31B", checkpointing=one), context=0, scored=0) for one in ("none", "all", "mlp")
    )
    assert plain.total / body == pytest.approx(4, rel=0.01)
    assert again.total / body == pytest.approx(6, rel=0.01)
    assert plain.total < inside.total < again.total


def test_a_window_limits_attention_where_documents_are_computed_by_themselves():
    shape = family.SIZES["E2B"].shape
    ours, stock = (
        speed.token_work(shape, _step("E2B", kernels=kernels), context=8192).attention
        for kernels in (KernelsConfig(), STOCK)
    )
    assert ours < stock / 4


def test_a_published_step_time():
    """31B in 4 bit on an A100 40 GB: 6.5 s for 4 rows, in Unsloth's notebook on chats of some 700 tokens."""
    step = _step("31B", "nf4", checkpointing="all", length=2048)
    made = speed.step_speed(
        family.SIZES["31B"].shape, step, devices.get_device("a100-40"), slots=2048, context=700, scored=0.6, padded=1.0
    )
    assert 6.5 / made.factor < 4 * 700 / made.tokens_per_second < 6.5 * made.factor


def test_padding_by_micro_batch():
    """Slots per token measured on 20,000 rows of log-normal length (median 199, mean 297, cut at 2,048) in random
    order."""
    found = row_lengths.find_lengths(RunConfig(name="nothing-prepared"), vocab=262_144)
    assert found.mean == pytest.approx(297, rel=0.02)
    for micro_batch, measured in ((2, 1.47), (4, 2.06), (8, 2.77), (16, 3.58)):
        assert found.padding(micro_batch) == pytest.approx(measured, rel=0.04)
    assert found.padding(1) == pytest.approx(1)
    even = dataclasses.replace(found, lengths=(300.0,) * 50)
    assert even.padding(16) == pytest.approx(1)


def test_a_faster_gpu_is_faster_and_an_unknown_one_has_no_speed():
    shape, step = family.SIZES["E4B"].shape, _step("E4B")
    pace = {
        key: speed.step_speed(
            shape, step, devices.get_device(key), slots=2048, context=1000, scored=0.6, padded=1.0
        ).tokens_per_second
        for key in ("t4", "l4", "rtx-4090", "a100-80", "h100", "h200")
    }
    assert pace["t4"] < pace["l4"] < pace["rtx-4090"] < pace["a100-80"] < pace["h100"] < pace["h200"]
    unknown = devices.Device("x", "X", 40, 0, 0, 0, None)
    assert speed.step_speed(shape, step, unknown, slots=2048, context=300, scored=0.6, padded=1.0) is None


def test_padding_costs_time():
    shape, step = family.SIZES["E2B"].shape, _step("E2B", length=8192)
    tight, loose = (
        speed.step_speed(
            shape, step, devices.get_device("h100"), slots=8192, context=300, scored=0.6, padded=padded
        ).tokens_per_second
        for padded in (1.0, 2.8)
    )
    assert tight > 2 * loose


@pytest.mark.parametrize("name", CPU["measured"])
def test_tokens_per_second_of_a_cpu_are_known_to_a_quarter(name):
    """One core of the record's processor, as `devices.processor` would describe it."""
    body = CPU["measured"][name]
    shape, facts = family.Shape.from_config(bench_shapes.text_config("cpu")), body["facts"]
    step = PassShape(
        "bf16", 16, tuple(family.lora_linears(shape)), tokens=facts["tokens"],
        length=int(facts["longest"]), scored=facts["labelled"], cuda=False,
    )  # fmt: skip
    core = devices.Device("cpu", "one core", 8, 0.33, 0.5, 10.0, None, cuda=False)
    made = speed.step_speed(
        shape, step, core, slots=facts["tokens"], context=facts["context"], scored=facts["labelled"], padded=1.0
    )
    assert made.tokens_per_second == pytest.approx(body["arms"]["gemma-ops"]["tokens_per_second"], rel=0.25)
