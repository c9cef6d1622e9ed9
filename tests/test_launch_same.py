"""Two processes reach what one reaches, whatever the strategy; and what would silently be something else is refused.

All of it in two real processes on gloo. Tolerances: the sums of a batch are taken in another order, in float32, over six
steps: 1e-5 of a loss, 1e-4 of a gradient's norm, 1e-3 of the adapter's largest value. In 4 bits, where FSDP computes in
bfloat16 what autocast leaves in float32: 3e-3 of a loss.
"""

from __future__ import annotations

import pytest
import torch
from launching import Stop, adapter, apart, base_into, curve, machine, pair, result, rows_into, stop_at

from gemma_ops.config import TrainConfig
from gemma_ops.errors import MachineError, ModelError
from gemma_ops.training import train

pytestmark = pytest.mark.slow
FOUR_BITS = {"weights": "nf4", "max_steps": 3}


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """Rows and bases."""
    folder = tmp_path_factory.mktemp("launch")
    found = {kind: base_into(folder / kind, kind) for kind in ("nano", "e2b", "moe")}
    return {**found, "data": rows_into(folder / "data"), "folder": folder}


def alone(there, kind, name, **settings):
    from launching import STEADY

    out = there["folder"] / name
    out.mkdir()
    train(out, TrainConfig(**{**STEADY, **settings}), machine(), base=there[kind], data=there["data"])
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
            {"name": f"{kind}-{strategy}", "base": there[kind], "strategy": strategy}
            for kind in ("e2b", "moe")
            for strategy in ("ddp", "fsdp")
        ),
        *(
            {"name": f"nf4-{strategy}", "base": there["nano"], "strategy": strategy, "settings": FOUR_BITS}
            for strategy in ("ddp", "fsdp")
        ),
        {"name": "nf4-moe", "base": there["moe"], "settings": FOUR_BITS},
        {"name": "nf4-moe-fsdp", "base": there["moe"], "strategy": "fsdp", "settings": FOUR_BITS},
        {"name": "resumed", "base": there["e2b"], "strategy": "fsdp", "out": half},
        {"name": "cut", "base": there["e2b"], "strategy": "fsdp", "stop": 4},
        {"name": "full-fsdp", "base": there["e2b"], "strategy": "fsdp", "full": True, "settings": {"max_steps": 2}},
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
    return {kind: alone(there, kind, f"{kind}-one") for kind in ("e2b", "moe")}


def same(out, other, rel=1e-5):
    losses, norms = curve(out)
    truth, lengths = curve(other)
    assert losses == pytest.approx(truth, rel=rel)
    assert norms == pytest.approx(lengths, rel=10 * rel)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["e2b", "moe"])
def test_two_processes_are_one(two, one, kind, strategy):
    out = result(two[f"{kind}-{strategy}"])
    same(out, one[kind])
    assert apart(adapter(out), adapter(one[kind])) < 1e-3


def test_four_bits_are_sharded_and_the_same(two, there):
    one = alone(there, "nano", "nf4-one", **FOUR_BITS)
    same(result(two["nf4-ddp"]), one)
    same(result(two["nf4-fsdp"]), one, rel=3e-3)


def test_experts_in_four_bits_are_the_same_where_each_holds_them_and_are_refused_where_they_would_be_spread(two, there):
    same(result(two["nf4-moe"]), alone(there, "moe", "nf4-moe-one", **FOUR_BITS))
    error = two["nf4-moe-fsdp"].error()
    assert isinstance(error, ModelError)
    assert (error.what, error.fix[:24]) == ("experts in 4 bits can't be spread by FSDP", "use launch.strategy=ddp,")


def test_one_saves_and_two_go_on(two, one):
    """Under FSDP, from a checkpoint that a single process without any strategy wrote."""
    out = result(two["resumed"])
    same(out, one["e2b"])
    assert apart(adapter(out), adapter(one["e2b"])) < 1e-3


def test_two_save_and_one_goes_on(two, one, there):
    from launching import STEADY

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
    assert apart(adapter(out), adapter(one["e2b"])) < 1e-3


def test_a_tied_head_is_saved_once_and_everything_whole(two, there):
    from safetensors.torch import load_file

    from gemma_ops.modeling.load import load_model

    saved = load_file(result(two["full-fsdp"]) / "trainable.safetensors")
    model = load_model(there["e2b"] / "weights", weights="fp32")
    assert {name: value.shape for name, value in saved.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
    assert "lm_head.weight" not in saved
    assert not torch.equal(saved["model.language_model.embed_tokens.weight"], model.get_input_embeddings().weight)


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
