"""What the plan decides where the configuration leaves it open, and that training does as it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gemma_ops import family
from gemma_ops.config import RunConfig, TrainConfig
from gemma_ops.planning import devices, passes, plan, training_memory
from gemma_ops.planning.training_step import GIB
from gemma_ops.runs import journal


def decide(size, train=None, device="h100", longest=2048, **more):
    return passes.decide_passes(
        family.SIZES[size].shape, TrainConfig(**(train or {})), devices.get_device(device), longest=longest, **more
    )


@pytest.mark.parametrize("size", family.SIZES)
@pytest.mark.parametrize("device", ["l4", "rtx-4090", "a100-80", "h200"])
@pytest.mark.parametrize("weights", ["bf16", "nf4"])
def test_what_is_decided_fits_and_what_would_be_faster_does_not(size, device, weights):
    shape, room = family.SIZES[size].shape, devices.get_device(device).memory * GIB
    train = TrainConfig(weights=weights)
    choice = decide(size, {"weights": weights}, device)

    def needs(checkpointing, tokens):
        made = passes.decide_passes(
            shape, train.model_copy(update={"checkpointing": checkpointing, "micro_tokens": tokens}),
            devices.get_device(device), longest=2048,
        )  # fmt: skip
        table = training_memory.memory_parts(shape, made.step)
        return training_memory.total(table) + training_memory.memory_spread(table)

    assert choice.fits == (needs(choice.checkpointing, choice.tokens) <= room)
    if choice.checkpointing != "none":
        assert needs("none", 8192) > room
        assert needs("none", 4096) > room
    if choice.checkpointing == "all" or not choice.fits:
        assert needs("mlp", 4096) > room


def test_the_order_of_ways_with_less_and_less_memory():
    devices_by_memory = ["h200", "a100-80", "a100-40", "rtx-4090", "l4"]
    order = {"none": 0, "mlp": 1}
    found = [decide("E4B", {}, device) for device in devices_by_memory]
    costs = [order.get(str(one.checkpointing), 2) for one in found]
    assert costs == sorted(costs)
    assert found[0].checkpointing == "none"
    assert found[0].tokens == 8192
    assert found[-1].checkpointing != "none"


def test_what_the_configuration_states_is_kept():
    assert decide("E2B", {"checkpointing": "all"}).checkpointing == "all"
    assert decide("E2B", {"checkpointing": 5}).checkpointing == 5
    assert decide("E2B", {"micro_tokens": 3000}).tokens == 3000
    assert decide("E2B", {"packing": False, "micro_batch": 4}).tokens == 4 * 2048
    assert decide("E2B", ple="device").ple == "device"
    assert decide("E2B").ple == "host"
    assert decide("31B").ple == "device"  # no per-layer table
    drawn = {"method": "grpo", "reinforce": {"rewards": ["exact_match"], "max_new_tokens": 100}, "micro_batch": 2}
    assert decide("E2B", drawn, longest=50).tokens == 300


def test_a_row_longer_than_a_usual_pass_gets_one_of_its_own():
    assert decide("E2B", {"max_length": 20_000}, longest=20_000, device="h200").tokens == 20_000


def test_training_takes_what_the_plan_says(monkeypatch):
    from gemma_ops.training import settle

    kept = {}
    monkeypatch.setattr(journal, "record", kept.update)
    monkeypatch.setattr(settle, "settle_here", lambda device: devices.get_device("rtx-4090"))
    shape = family.SIZES["E4B"].shape
    rows = {"length": [10, 2048]}
    settings = settle.settle(TrainConfig(), shape, [rows, {"length": []}], "cuda", ple="auto")
    made = plan(RunConfig(model={"base": "google/gemma-4-E4B-it"}), "rtx-4090")
    assert settings.checkpointing == made.choice.checkpointing == kept["checkpointing"]
    assert settings.micro_tokens == made.choice.tokens == kept["pass_tokens"]
    assert kept["per_layer_table"] == "host"


def test_passes_are_not_recorded_where_that_does_not_fit(monkeypatch):
    """The last resort, after everything has been recomputed; training obeys."""
    from gemma_ops.training import settle

    shape = family.SIZES["31B"].shape
    train = TrainConfig(weights="nf4", max_length=2048)
    tight = devices.get_device("rtx-4090")
    choices = [passes.decide_passes(shape, train, one, longest=2048) for one in (tight, devices.get_device("h200"))]
    assert [(choice.checkpointing, choice.graphs, choice.fits) for choice in choices] == [
        ("all", "off", True),
        ("none", "auto", True),
    ]
    assert training_memory.recorded(shape, choices[1].step)
    assert not training_memory.recorded(shape, choices[0].step)
    monkeypatch.setattr(settle, "settle_here", lambda device: tight)
    settled = settle.settle(train, shape, [{"length": [2048]}], "cuda", ple="auto")
    assert settled.kernels.graphs == "off"
    assert passes.decide_passes(shape, TrainConfig(), devices.processor(), longest=2048).graphs == "auto"


def test_long_documents_among_short_ones_cost_the_memory_of_a_pass_twice():
    """Passes that hold them are launched, the others recorded, and these two don't share memory."""
    for size, key, longest in (("31B", "h100", 8192), ("31B", "a100-80", 4096), ("E2B", "h200", 8192)):
        shape = family.SIZES[size].shape
        train, device = TrainConfig(weights="nf4", max_length=longest), devices.get_device(key)
        made = passes.decide_passes(shape, train, device, longest=longest)
        off = train.model_copy(update={"kernels": train.kernels.model_copy(update={"graphs": "off"})})
        without = passes.decide_passes(shape, off, device, longest=longest)
        # Never more recomputed for the sake of recording some.
        assert (made.checkpointing, made.tokens) == (without.checkpointing, without.tokens)
        assert made.graphs == ("auto" if size == "E2B" else "off")
        assert not made.step.replayed
        once = training_memory.total(training_memory.activation_parts(shape, made.step))
        more = training_memory.total(training_memory.recorded(shape, made.step))
        assert more == 0 if made.graphs == "off" else once < more < 1.5 * once
        short = passes.decide_passes(shape, train, device, longest=1024).step
        assert short.replayed == (training_memory.total(training_memory.recorded(shape, short)) > 0)
    never = passes.decide_passes(family.SIZES["E2B"].shape, TrainConfig(), devices.get_device("a100-80"), longest=512)
    assert not training_memory.recorded(family.SIZES["E2B"].shape, never.step)


def test_passes_are_recorded_where_that_is_the_fastest(monkeypatch):
    """Heads of 512 have kernels of fixed shape on a Hopper, up to documents of some length; elsewhere only many heads
    do."""
    import torch

    from gemma_ops.kernels import attention_packed

    assert (passes.FEW, passes.LONG, passes.FAR) == (attention_packed.FEW, attention_packed.LONG, attention_packed.FAR)
    found = {}
    for key, hopper in (("h200", True), ("a100-80", False)):
        kernels = SimpleNamespace(WIDTHS=(512,), fits=lambda device, hopper=hopper: hopper)
        monkeypatch.setattr(attention_packed, "_wide", lambda kernels=kernels: kernels)
        for size in ("E2B", "31B"):
            shape = family.SIZES[size].shape
            heads = max(layer.heads for layer in shape.layers)
            for longest in (2048, 4096, 8192):
                one = attention_packed.steady(heads, 512, longest, torch.device("cuda"))
                assert passes._steady(shape, devices.get_device(key), longest) == one
                found[key, size, longest] = one
    assert [case for case, one in found.items() if one] == [
        ("h200", "E2B", 2048), ("h200", "E2B", 4096), ("h200", "31B", 2048), ("h200", "31B", 4096),
        ("a100-80", "31B", 2048),
    ]  # fmt: skip


def test_only_adapters_of_one_pass_at_a_time_are_recorded():
    shape = family.SIZES["E2B"].shape
    for change in (
        {"method": "dpo"}, {"tune": "full"}, {"kernels": {"graphs": "off"}}, {"kernels": {"lora": "peft"}},
        {"lora": {"dropout": 0.05}}, {"packing": False},
    ):  # fmt: skip
        step = passes.decide_passes(shape, TrainConfig(**change), devices.get_device("h200"), longest=512).step
        assert not step.replayed, change
    for change in ({}, {"packing": False, "micro_batch": 1}):
        assert passes.decide_passes(shape, TrainConfig(**change), devices.get_device("h200"), longest=512).step.replayed
    mixture = family.SIZES["26B-A4B"].shape
    for key, replayed in (("h100", True), ("b200", True), ("a100-80", False), ("rtx-4090", False)):
        step = passes.decide_passes(mixture, TrainConfig(weights="nf4"), devices.get_device(key), longest=512).step
        assert step.replayed == replayed, key
    assert not passes.decide_passes(
        shape, TrainConfig(), devices.get_device("h200"), longest=512, processes=2
    ).step.replayed
    several = RunConfig(model={"base": "google/gemma-4-31B-it"}, launch={"engine": "torchrun", "processes": 8})
    assert not plan(several, "h200").choice.step.replayed


def test_the_device_that_trains_is_found_in_the_table(monkeypatch):
    import torch

    from gemma_ops.training import settle

    assert settle.settle_here("cpu").key == "cpu"
    found = SimpleNamespace(name="NVIDIA H200", total_memory=int(139.8 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert settle.settle_here("cuda").key == "h200"


def test_a_plan_can_be_simulated(tmp_path, monkeypatch):
    """nano's own step: the real modules' live bytes lie near the formula."""
    from gemma_ops.training.simulate.simulation_report import simulate_plan

    monkeypatch.chdir(tmp_path)
    config = RunConfig(train={"max_length": 512, "weights": "bf16", "kernels": {"graphs": "off"}})
    made = plan(config, "l4")
    done = simulate_plan(config, made)
    assert done.total == pytest.approx(done.formula, rel=0.15)
    recorded = RunConfig(train={"max_length": 512, "weights": "bf16"})
    more = simulate_plan(recorded, plan(recorded, "l4"))
    assert more.total - done.total == pytest.approx(more.formula - done.formula, rel=0.01)
    assert 0 < done.kept < done.total
    assert "GiB at the highest point" in done.lines()[0]


def test_the_old_spelling_of_checkpointing_is_refused():
    """`true` was once a value; as a number it would mean one layer."""
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        TrainConfig(checkpointing=True)
