"""Bytes of `planning.memory` against real steps on a GPU, a simulation of the real graph, and what other trainers
report.

The records in configs/benchmarks are `gemma-ops bench train` on an H200. The simulated numbers come from running
transformers 5.23 + PEFT 0.21 + TRL's fused head at true dimensions on fake tensors (CPU kernels, rank 16, one row).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemma_ops import family
from gemma_ops.bench.training import bench_rows, bench_shapes
from gemma_ops.bench.training.bench_spec import make_spec
from gemma_ops.config import KernelsConfig
from gemma_ops.planning import training_memory
from gemma_ops.planning.training_step import GIB, PassShape
from gemma_ops.training.steps import pack

STOCK = KernelsConfig(attention="sdpa", head="trl", lora="peft", norms="eager", compile="off")
_FOLDER = Path(__file__).parents[2] / "configs" / "benchmarks"
RECORDS, CPU = (json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in ("h200", "cpu"))


def _step(key, weights="bf16", *, checkpointing="none", length=2048, rank=16, kernels=STOCK, **more):
    linears = tuple(family.lora_linears(family.SIZES[key].shape))
    return PassShape(weights, rank, linears, length, length, checkpointing, kernels=kernels, **more)


def recorded(name, arm):
    """The step that a record measured: its largest pass, and what was found."""
    body = RECORDS["measured"][name]
    spec, facts, found = body["spec"], body["facts"], body["arms"][arm]
    drawn = bench_rows.draw_rows(
        make_spec(device="cuda", **{k: v for k, v in spec.items() if k != "checkpointing"}), 262_144
    )
    lengths = [len(row.input_ids) for row in drawn]
    passes = [sum(lengths[row] for row in one) for one in pack(range(len(lengths)), lengths, spec["row_length"])]
    shape = family.Shape.from_config(bench_shapes.text_config(spec["size"]))
    ours = arm == "gemma-ops"
    step = PassShape(
        spec["weights"], spec["rank"], tuple(family.lora_linears(shape)),
        tokens=max(passes) if ours else min(spec["row_length"], sum(passes)), length=int(facts["longest"]),
        checkpointing=found["settings"]["checkpointing"] if ours else "all", scored=facts["labelled"],
        kernels=KernelsConfig(**found["settings"]["kernels"]) if ours else STOCK,
        ple="host" if ours and shape.per_layer_dim else "device",
    )  # fmt: skip
    return shape, step, passes, facts, found


@pytest.mark.parametrize("name", RECORDS["measured"])
def test_the_peak_of_a_real_step_is_known_to_ten_percent(name):
    shape, step, _, _, found = recorded(name, "gemma-ops")
    table = [
        part for part in training_memory.memory_parts(shape, step) if part.kind != "reserve"
    ]  # PyTorch's own count has no context
    assert training_memory.total(table) == pytest.approx(found["total_bytes"], rel=0.10)


@pytest.mark.parametrize("name", ["e2b-bf16-300-8192", "e4b-bf16-300-8192", "31b-nf4-300-4096"])
def test_stock_trl_is_known_to_an_eighth(name):
    """With every kernel switched off the plan describes transformers, PEFT and TRL."""
    shape, step, _, _, found = recorded(name, "trl-packed")
    table = [part for part in training_memory.memory_parts(shape, step) if part.kind != "reserve"]
    assert training_memory.total(table) == pytest.approx(found["total_bytes"], rel=0.125)


@pytest.mark.parametrize(
    ("key", "free"), [("E2B", 5201.8), ("E4B", 8075.6), ("12B", 14_232.7), ("26B-A4B", 8826.4), ("31B", 28_177.4)]
)
def test_stock_activations_equal_the_simulation_to_two_percent(key, free):
    step = _step(key)
    kept = training_memory.activation_parts(family.SIZES[key].shape, step)[0].bytes / step.tokens / 1024
    assert kept == pytest.approx(free, rel=0.02)


def test_recomputing_keeps_less_in_the_order_of_its_cost():
    shape = family.SIZES["E4B"].shape
    fused = KernelsConfig()
    peaks = [
        training_memory.total(
            training_memory.memory_parts(shape, _step("E4B", checkpointing=one, length=8192, kernels=fused))
        )
        for one in ("none", 10, 20, 30, "all")
    ]
    assert peaks == sorted(peaks, reverse=True)
    inside = training_memory.total(
        training_memory.memory_parts(shape, _step("E4B", checkpointing="mlp", length=8192, kernels=fused))
    )
    assert peaks[-1] < inside < peaks[0]


def test_a_table_on_the_host_is_not_on_the_device():
    shape = family.SIZES["E2B"].shape
    here, there = (_step("E2B", ple=place) for place in ("device", "host"))
    gone = training_memory.total(training_memory.weight_parts(shape, here)) - training_memory.total(
        training_memory.weight_parts(shape, there)
    )
    assert gone == training_memory.host_bytes(shape, there) == 2 * shape.counts().per_layer_table
    assert training_memory.host_bytes(shape, here) == 0


def _weights(key, dtype):
    return training_memory.total(training_memory.weight_parts(family.SIZES[key].shape, _step(key, dtype))) / GIB


@pytest.mark.parametrize(
    ("key", "bf16", "nf4"),
    [("E2B", 8.6, 6.1), ("E4B", 13.9, 8.5), ("12B", 22.2, 7.1), ("26B-A4B", 47.0, 13.2), ("31B", 57.2, 16.7)],
)
def test_weights_loaded_for_text(key, bf16, nf4):
    assert _weights(key, "bf16") == pytest.approx(bf16, abs=0.1)
    assert _weights(key, "nf4") == pytest.approx(nf4, abs=0.1)
    assert _weights(key, "fp32") == pytest.approx(2 * _weights(key, "bf16"))


@pytest.mark.parametrize(
    ("key", "dtype", "gib"),
    # `max_memory_reserved` after loading, as printed in Unsloth's published notebooks, where the towers are loaded too.
    [("31B", "nf4", 18.57), ("12B", "bf16", 22.43), ("E2B", "bf16", 10.10)],
)
def test_weights_and_towers_lie_just_below_published_reserved_memory(key, dtype, gib):
    counts = family.SIZES[key].shape.counts()
    loaded = _weights(key, dtype) + 2 * (counts.vision + counts.audio) / GIB
    assert gib * 0.93 < loaded < gib


def test_adapter_and_full_tuning_bytes():
    shape, step = family.SIZES["31B"].shape, _step("31B")
    assert step.adapter_parameters == 122_429_440  # r 16 on the seven linears, counted on the model
    assert training_memory.total(training_memory.learning_parts(shape, step)) == 16 * 122_429_440
    assert _step("31B", rank=32).adapter_parameters == 2 * 122_429_440
    eight = _step("31B", optimizer="adamw_8bit")
    assert training_memory.total(training_memory.learning_parts(shape, eight)) == 10 * 122_429_440
    e2b = family.SIZES["E2B"].shape
    counts = e2b.counts()
    full = PassShape("bf16", 16, (), 2048, 2048, full=True)
    learns = counts.text - counts.per_layer_table
    assert (
        training_memory.total(training_memory.learning_parts(e2b, full)) == 12 * learns
    )  # gradients and two moments; the weights are theirs
    assert training_memory.total(training_memory.weight_parts(e2b, full)) == 4 * counts.text


@pytest.mark.parametrize("name", CPU["measured"])
def test_the_peak_on_a_cpu_is_known_to_ten_percent(name):
    body = CPU["measured"][name]
    shape = family.Shape.from_config(bench_shapes.text_config("cpu"))
    step = PassShape(
        "bf16", 16, tuple(family.lora_linears(shape)), tokens=body["facts"]["tokens"],
        length=int(body["facts"]["longest"]), scored=body["facts"]["labelled"], cuda=False,
    )  # fmt: skip
    found = body["arms"]["gemma-ops"]["total_bytes"]
    assert training_memory.total(training_memory.memory_parts(shape, step)) == pytest.approx(found, rel=0.10)
