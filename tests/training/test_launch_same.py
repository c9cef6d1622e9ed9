"""Two processes reach what one reaches, whatever the strategy; and what would silently be something else is refused.

All of it in two real processes on gloo, each of which computes a part of every step. Tolerances: the sums of a batch
are taken in another order, in float32, over six steps: 1e-5 of a loss, 1e-4 of a gradient's norm, 1e-2 of the adapter's
largest value, where Adam makes whole steps of gradients that are nearly nothing. In bfloat16 and four bits: 3e-3 of a
loss, 3e-2 of a norm, whose passes are of other rows.
"""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from gemma_ops.config import TrainConfig
from gemma_ops.errors import MachineError, ModelError
from gemma_ops.training import train
from tests.helpers.launched import (
    STEADY,
    Stop,
    adapter,
    apart,
    base_into,
    curve,
    machine,
    pair,
    result,
    rows_into,
    stop_at,
)

pytestmark = pytest.mark.slow
PACKED = {"packing": True, "max_steps": 2}
FOUR_BITS = {"weights": "nf4", "max_steps": 2}
PAIRS = {("e2b", "ddp"): {}, ("moe", "ddp"): PACKED, ("moe", "fsdp"): PACKED}
WAYS = {
    "recomputed": {**PACKED, "weights": "bf16", "checkpointing": "all"},
    "uneven": {**PACKED, "batch": 47, "micro_batch": 1, "eval_every": 1, "early_stop": 1},
    "distill": {**PACKED, "method": "distill", "distill": {"teacher": "twin"}},
}
"""Settings of a training, by name: layers computed again; a second step of one row, so that one process has none, and
the best checkpoint taken; a teacher on each process."""


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Rows and bases."""
    folder = tmp_path_factory.mktemp("launch")
    found = {kind: base_into(folder / kind, kind) for kind in ("nano", "e2b", "moe")}
    return {**found, "data": rows_into(folder / "data"), "folder": folder}


def alone(there, kind, name, *, teacher=None, **settings):
    out = there["folder"] / name
    out.mkdir()
    train(out, TrainConfig(**{**STEADY, **settings}), machine(), base=there[kind], data=there["data"], teacher=teacher)
    return out


@pytest.fixture(scope="module")
def half(there):
    """A training in one process, cut off after the checkpoint of its fourth step."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(4, patch.setattr)
        with pytest.raises(Stop):
            alone(there, "e2b", "half")
    return there["folder"] / "half"


@pytest.fixture(scope="module")
def two(there, half):
    """Everything that two processes do in this file."""
    folder, data = there["folder"], there["data"]
    entries = [
        *(
            {"name": f"{kind}-{strategy}", "base": there[kind], "strategy": strategy, "settings": settings}
            for (kind, strategy), settings in PAIRS.items()
        ),
        *(
            {"name": f"nf4-{strategy}", "base": there["nano"], "strategy": strategy, "settings": FOUR_BITS}
            for strategy in ("ddp", "fsdp")
        ),
        {"name": "nf4-moe", "base": there["moe"], "settings": FOUR_BITS},
        {"name": "nf4-moe-fsdp", "base": there["moe"], "strategy": "fsdp", "settings": FOUR_BITS},
        {"name": "resumed", "base": there["e2b"], "strategy": "fsdp", "out": half},
        {"name": "cut", "base": there["e2b"], "strategy": "fsdp", "stop": 4},
        {"name": "full-fsdp", "base": there["e2b"], "strategy": "fsdp", "settings": {**PACKED, "tune": "full"}},
        *(
            {"name": name, "base": there["e2b"], "strategy": "fsdp", "settings": settings, "teacher": there["e2b"]}
            for name, settings in WAYS.items()
        ),
        {"name": "apart", "base": there["e2b"], "break": "use_cpu"},
        {"name": "ignored", "base": there["e2b"], "strategy": "fsdp", "break": "fsdp"},
        {
            "name": "uint8",
            "base": there["nano"],
            "strategy": "fsdp",
            "break": "storage",
            "settings": {"weights": "nf4"},
        },
        {"name": "nothing", "base": there["e2b"], "strategy": "fsdp", "break": "saving", "settings": {"max_steps": 1}},
    ]
    return pair(folder, [{"data": data, **entry} for entry in entries])


@pytest.fixture(scope="module")
def one(there):
    return {"e2b": alone(there, "e2b", "e2b-one"), "moe": alone(there, "moe", "moe-one", **PACKED)}


def same(out, other, rel=1e-5):
    losses, norms = curve(out)
    truth, lengths = curve(other)
    assert losses == pytest.approx(truth, rel=rel)
    assert norms == pytest.approx(lengths, rel=10 * rel)


@pytest.mark.parametrize(("kind", "strategy"), PAIRS)
def test_two_processes_are_one(two, one, kind, strategy):
    out = result(two[f"{kind}-{strategy}"])
    same(out, one[kind])
    assert apart(adapter(out), adapter(one[kind])) < 1e-2


def test_four_bits_are_sharded_and_the_same(two, there):
    one = alone(there, "nano", "nf4-one", **FOUR_BITS)
    same(result(two["nf4-ddp"]), one, rel=3e-3)
    same(result(two["nf4-fsdp"]), one, rel=3e-3)


def test_experts_in_four_bits_are_sharded_and_the_same(two, there):
    one = alone(there, "moe", "nf4-moe-one", **FOUR_BITS)
    same(result(two["nf4-moe"]), one, rel=3e-3)
    same(result(two["nf4-moe-fsdp"]), one, rel=3e-3)


@pytest.mark.parametrize("name", WAYS)
def test_other_ways_to_train_are_the_same_where_the_model_is_spread(two, there, name):
    one = alone(there, "e2b", f"{name}-one", teacher=there["e2b"], **WAYS[name])
    same(result(two[name]), one, rel=3e-3 if name == "recomputed" else 1e-5)
    entries = [json.loads(line) for line in (one / "record.jsonl").read_text().splitlines()]
    validated = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert two[name].result()["eval_loss"] == pytest.approx(min(validated), rel=1e-3)


def test_one_saves_and_two_go_on(two, one):
    """Under FSDP, from a checkpoint that a single process without any strategy wrote."""
    out = result(two["resumed"])
    same(out, one["e2b"])
    assert apart(adapter(out), adapter(one["e2b"])) < 1e-2


def test_two_save_and_one_goes_on(two, one, there):
    out = result(two["cut"])
    assert {path.name for path in (out / "checkpoints" / "checkpoint-4").iterdir()} == {
        "complete",
        "optimizer.pt",
        "scheduler.pt",
        "trainable.safetensors",
        "trainer_state.json",
    }
    train(out, TrainConfig(**STEADY), machine(), base=there["e2b"], data=there["data"])
    same(out, one["e2b"])
    assert apart(adapter(out), adapter(one["e2b"])) < 1e-2


def test_a_tied_head_is_saved_once_and_everything_whole(two, there):
    """Every parameter of the language model, trained in parts, and written as one process writes it."""
    one = alone(there, "e2b", "full-one", **PACKED, tune="full")
    out = result(two["full-fsdp"])
    same(out, one)
    saved, truth = (load_file(next((each / "tuned").glob("*.safetensors"))) for each in (out, one))
    assert {name: value.shape for name, value in saved.items()} == {name: value.shape for name, value in truth.items()}
    assert "lm_head.weight" not in saved
    assert "model.language_model.embed_tokens.weight" in saved
    assert max((saved[name] - truth[name]).abs().max().item() for name in truth) < 5e-3  # of two steps of 2e-3


def test_processes_that_would_train_apart_are_refused(two):
    """What happens on a CPU without `use_cpu`: two trainings into one folder, and not a word."""
    error = two["apart"].error()
    assert isinstance(error, MachineError)
    assert "2 processes were started, and the trainer would let each train by itself" in error.what


def test_a_strategy_that_is_ignored_is_refused(two):
    """What accelerate does on CPUs: DDP where FSDP was asked for."""
    error = two["ignored"].error()
    assert isinstance(error, MachineError)
    assert "the trainer's is MULTI_CPU" in error.what


def test_weights_that_stay_whole_are_refused(two):
    error = two["uint8"].error()
    assert isinstance(error, MachineError)
    assert "whole on every process" in error.what


def test_an_adapter_that_was_not_saved_is_noticed(two):
    """As a sharded state leaves it: a file, or none, without what was trained."""
    error = two["nothing"].error()
    assert isinstance(error, ModelError)
    assert "holds 0 of 36 adapted modules" in error.what
