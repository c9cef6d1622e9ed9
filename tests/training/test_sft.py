"""Training is exact: each decision taken against a silent error of the stack has a test that fails without it.

Relative tolerances are float32 rounding over a few steps of a two-million-parameter model; each is stated where it is
used.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gemma_ops.config import LoraConfig, MachineConfig, TrainConfig
from gemma_ops.data import chat
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.modeling import adapters
from gemma_ops.modeling.load import load_model
from gemma_ops.nano import WEIGHTS, tickets
from gemma_ops.runs import digest
from gemma_ops.training import train
from gemma_ops.training.arguments import sft_arguments

MACHINE = MachineConfig(device="cpu", workers=1)
STEADY = {
    "weights": "fp32",
    "learning_rate": 2e-3,
    "max_steps": 6,
    "batch": 8,
    "micro_batch": 8,
    "max_length": 256,
    "schedule": "constant",
    "warmup_share": 0.0,
    "samples": 0,
}


def rows(count, seed=1):
    for row in tickets.training_rows(count, seed):
        yield {"id": digest.of_json(row)[:16], **row, "source": "test:1", "privacy": "any", "group": "g"}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    examples = list(rows(56))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples[:48]))
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples[48:]))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fetched")
    (folder / "weights").symlink_to(WEIGHTS)
    (folder / "model.json").write_text(json.dumps({"id": "nano", "revision": None, "size": None, "files": {}}))
    return folder


def losses(out):
    records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def norms(out):
    records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
    return [record["grad_norm"] for record in records if "loss" in record]


@pytest.fixture(scope="session")
def steady(tmp_path_factory, base, prepared):
    """One plain training to compare all others with."""
    out = tmp_path_factory.mktemp("steady")
    train(out, TrainConfig(**STEADY), MACHINE, base=base, data=prepared)
    return out


def variant(tmp_path, base, prepared, **changes):
    train(tmp_path, TrainConfig(**{**STEADY, **changes}), MACHINE, base=base, data=prepared)
    return tmp_path


def test_golden_losses(steady):
    """Catches any silent change of numerics: template, mask, loss averaging, initialisation, optimizer."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
    assert losses(steady) == pytest.approx(golden, rel=2e-3)


def test_a_mean_of_means_would_not_be_the_large_batch(tmp_path, base, prepared, steady, monkeypatch):
    """Why a step carries its own divisor: averaged pass by pass, short rows would weigh more."""
    from gemma_ops.training import trainer

    score = trainer.StepTrainer._score
    monkeypatch.setattr(
        trainer.StepTrainer,
        "_score",
        lambda self, model, arguments, divisor: score(self, model, arguments, len(arguments["where"]) * 4.0),
    )
    out = variant(tmp_path, base, prepared, packing=False, micro_batch=2)
    assert norms(out) != pytest.approx(norms(steady), rel=1e-3)


def test_replayed_passes_train_the_same(tmp_path, base, prepared, steady, monkeypatch):
    """All passes of a training through the fixed memory of recorded ones, on a tape that needs no GPU."""
    from gemma_ops.kernels import graphs_capture, graphs_layers
    from gemma_ops.kernels import install as installing

    made, replay = [], graphs_layers._Replay.backward
    monkeypatch.setattr(installing, "_replays", lambda *_: True)
    monkeypatch.setattr(graphs_capture.Graph, "maker", lambda: graphs_capture.Again)
    monkeypatch.setattr(
        graphs_layers._Replay, "backward", staticmethod(lambda ctx, outer: made.append(1) or replay(ctx, outer))
    )
    out = variant(tmp_path, base, prepared, micro_tokens=256)
    assert losses(out) == pytest.approx(losses(steady), rel=1e-4)
    assert len(made) > 2 * len(losses(out))


def test_every_module_is_in_training_mode_in_every_pass(tmp_path, base, prepared, monkeypatch):
    """Also those of the base, which is loaded for answering, and after validation."""
    from gemma_ops.training import trainer

    score, asleep = trainer.StepTrainer._score, []

    def scored(self, model, arguments, divisor):
        if torch.is_grad_enabled():
            asleep.append(sum(not module.training for module in model.modules()))
        return score(self, model, arguments, divisor)

    monkeypatch.setattr(trainer.StepTrainer, "_score", scored)
    variant(tmp_path, base, prepared, eval_every=2)
    assert len(asleep) > 4
    assert not any(asleep)


def test_the_next_pass_is_fetched_while_this_one_is_computed(tmp_path, base, prepared, steady, monkeypatch):
    """Also the first pass of the step that follows, over all epochs; what is computed stays the same."""
    from gemma_ops.training import trainer

    seen = []

    class Table:
        def prefetch(self, ids, device):
            seen.append(("fetched", ids.tolist()))

    score = trainer.StepTrainer._score

    def scored(self, model, arguments, divisor):
        if model.training:
            seen.append(("computed", arguments["input_ids"].tolist()))
        return score(self, model, arguments, divisor)

    monkeypatch.setattr(trainer.StepTrainer, "_score", scored)
    monkeypatch.setattr(trainer.StepTrainer, "_table", Table())
    out = variant(tmp_path, base, prepared, micro_tokens=256)
    assert losses(out) == pytest.approx(losses(steady), rel=1e-4)
    fetched, computed = ([ids for what, ids in seen if what == kind] for kind in ("fetched", "computed"))
    last = [index for index, (what, _) in enumerate(seen) if what == "computed"]
    assert len(computed) > 2 * len(losses(out))
    assert fetched == computed[1:]
    assert all(seen[index + 1] == ("fetched", ids) for index, ids in zip(last, computed[1:], strict=False))


@pytest.mark.upstream("reentrant-checkpointing")
def test_reentrant_checkpointing_would_corrupt_shared_layers(base, prepared):
    """Why `use_reentrant=False`: with layers that share keys and values the gradients are wrong while the loss is
    right."""

    def gradients(reentrant):
        model = adapters.attach(load_model(WEIGHTS, weights="fp32"), LoraConfig(), seed=3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.manual_seed(len(name))
                parameter.data.normal_(std=0.02)
        model.train()
        if reentrant is not None:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ids = torch.tensor([chat.encode_chat(chat.load_tokenizer(WEIGHTS), next(rows(1))["messages"]).ids])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    loss, truth = gradients(None)
    same_loss, same = gradients(False)
    bad_loss, bad = gradients(True)
    assert same_loss == pytest.approx(loss, rel=1e-6)
    assert bad_loss == pytest.approx(loss, rel=1e-6)
    assert (same - truth).norm() / truth.norm() < 1e-5
    assert (bad - truth).norm() / truth.norm() > 0.05


SHAPES = [
    {"packing": False, "micro_batch": 8},
    {"packing": False, "micro_batch": 2},
    {"micro_tokens": 256},
    {"kernels": {"attention": "sdpa"}},
    {"kernels": {"attention": "sdpa", "head": "trl", "lora": "peft", "norms": "eager"}},
    {"checkpointing": "none"},
    {"checkpointing": "mlp"},
    {"checkpointing": "all"},
    {"checkpointing": 3},
]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_however_it_is_computed_the_result_is_the_same(tmp_path, base, prepared, steady, changes):
    """Packed, padded, accumulated, recomputed, with our kernels or without: the same rows make the same steps."""
    out = variant(tmp_path, base, prepared, **changes)
    assert losses(out) == pytest.approx(losses(steady), rel=1e-4)
    assert norms(out) == pytest.approx(norms(steady), rel=1e-3)
    assert validations(out) == pytest.approx(validations(steady), rel=1e-4)


@pytest.mark.upstream("packing-with-mask")
def test_an_all_ones_mask_would_leak_between_packed_rows():
    """Why packing goes without an attention mask: position ids alone keep documents apart."""
    model = load_model(WEIGHTS, weights="fp32")
    first, second = torch.arange(120, 150)[None], torch.arange(300, 340)[None]
    alone = model(input_ids=second, use_cache=False).logits
    both = torch.cat([first, second], 1)
    places = torch.cat([torch.arange(30), torch.arange(40)])[None]
    with torch.no_grad():
        apart = model(input_ids=both, position_ids=places, use_cache=False).logits[:, 30:]
        leaking = model(
            input_ids=both, position_ids=places, attention_mask=torch.ones_like(both), use_cache=False
        ).logits[:, 30:]
    assert (apart - alone).abs().max() < 1e-3
    assert (leaking - alone).abs().max() > 0.1


def test_a_training_of_the_warm_ups_first_step_alone_is_refused_before_the_model_is_loaded(
    tmp_path, base, prepared, monkeypatch
):
    loaded = []
    monkeypatch.setattr("gemma_ops.training.sft.SupervisedCourse.model", lambda *_, **__: loaded.append(1))
    for changes in ({"max_steps": 1}, {"max_steps": None, "batch": 64}, {"max_steps": None, "batch_tokens": 10**6}):
        with pytest.raises(ConfigError, match="one step long"):
            train(tmp_path / "out", TrainConfig(**changes), MACHINE, base=base, data=prepared)
    assert not loaded
    assert TrainConfig(max_steps=1, warmup_share=0).warm_up_alone(48, 999) is None
    assert TrainConfig(batch=24, epochs=1).warm_up_alone(48, 999) is None


def test_the_adapters_files_have_the_mode_of_the_umask(tmp_path, base, prepared):
    before = os.umask(0o027)
    try:
        train(tmp_path / "out", TrainConfig(max_steps=2, samples=0), MACHINE, base=base, data=prepared)
    finally:
        os.umask(before)
    files = list(digest.files_in(tmp_path / "out"))
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_validation_record_samples_and_what_is_kept(tmp_path, base, prepared):
    out = variant(tmp_path, base, prepared, eval_every=3, samples=2, batch=4, micro_batch=4)
    records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "eval_loss" in record] == [3, 6]
    assert not any("runtime" in key or "per_second" in key for record in records for key in record)
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [3, 3, 6, 6]
    assert all(sample["reference"].startswith('{"category"') for sample in samples)
    files = {path.relative_to(out).as_posix() for path in digest.files_in(out)}
    assert files == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/learned.json",
        "learned.json",
        "record.jsonl",
        "adapter/prompting.json",
        "samples.jsonl",
    }
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "nano"
    assert str(WEIGHTS) not in json.dumps(config)


def validations(out):
    records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
    return [record["eval_loss"] for record in records if "eval_loss" in record]


def test_validation_weighs_tokens_and_not_batches(tmp_path, base, prepared, steady):
    """Eight rows as batches of three, three and two say what one batch of eight says."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, batch in ((whole, 8), (parts, 3)):
        out.mkdir()
        variant(out, base, prepared, max_steps=1, batch=batch, micro_batch=batch, learning_rate=1e-9)
    assert validations(parts) == pytest.approx(validations(whole), rel=1e-6)


def test_fused_adapters_compute_without_autocast(tmp_path, base, prepared, monkeypatch):
    """Autocast would keep a bf16 copy of whatever float32 it meets; PEFT's own linears can't do without."""
    forward = torch.nn.Embedding.forward
    found = set()

    def seen(self, ids):
        found.add(torch.is_autocast_enabled("cpu"))
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", seen)
    for lora, expected in (("fused", {False}), ("peft", {True})):
        (out := tmp_path / lora).mkdir()
        found.clear()
        variant(out, base, prepared, weights="bf16", max_steps=1, kernels={"lora": lora}, eval_every=None)
        assert expected <= found
        assert lora == "peft" or found == expected


def test_early_stop_ends_when_nothing_gets_better(tmp_path, base, prepared):
    """With a learning rate too small for float32 to notice, the second validation is no better than the first."""
    out = variant(tmp_path, base, prepared, eval_every=2, early_stop=1, learning_rate=1e-12, max_steps=40)
    assert len(losses(out)) == 4


def test_early_stop_keeps_the_best(tmp_path, base, prepared):
    """With a learning rate that ruins the model, the adapter that is kept is the best validation's, not the last
    one."""
    out = variant(tmp_path, base, prepared, eval_every=2, early_stop=3, learning_rate=20.0, max_steps=6)
    *during, kept = validations(out)
    assert kept == pytest.approx(min(during), rel=1e-6)


def test_qlora_trains_what_it_should(tmp_path, base, prepared):
    out = variant(tmp_path, base, prepared, weights="nf4", max_steps=4, learning_rate=5e-3)
    found = losses(out)
    assert found[-1] < found[0]
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(out / "adapter" / "adapter_model.safetensors").values()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    "key, message",
    [
        ("gradient_checkpointing_kwargs", "reentrant"),
        ("fp16", "overflow"),
        ("learning_rate", "follows from the train section"),
        ("neftune_noise_alpha", "follows from the train section"),
        ("adam_betta2", "did you mean adam_beta2"),
    ],
)
def test_trl_keys_are_checked(tmp_path, key, message):
    with pytest.raises(ConfigError, match=message):
        sft_arguments(TrainConfig(trl={key: 1}), tmp_path, has_valid=False, rate=1e-4, device="cpu")


def test_trl_keys_pass_through(tmp_path):
    arguments = sft_arguments(TrainConfig(trl={"adam_beta2": 0.95}), tmp_path, has_valid=False, rate=1e-4, device="cpu")
    assert arguments.adam_beta2 == 0.95
    assert arguments.optim == "adamw_torch_fused"
    other = sft_arguments(TrainConfig(trl={"optim": "sgd"}), tmp_path, has_valid=False, rate=1e-4, device="cpu")
    assert other.optim == "sgd"


def test_early_stop_without_validation_rows_is_refused(tmp_path):
    settings = TrainConfig(early_stop=1, eval_every=1)
    with pytest.raises(ConfigError, match=r"needs validation rows"):
        sft_arguments(settings, tmp_path, has_valid=False, rate=1e-4, device="cpu")


def test_rows_longer_than_max_length_are_counted_and_empty_ones_refused(tmp_path, base, prepared):
    with pytest.raises(DataError, match=r"train\.max_length"):
        variant(tmp_path, base, prepared, max_length=16)


_CHILD = """
import sys
from pathlib import Path
from gemma_ops.config import MachineConfig, TrainConfig
from gemma_ops.training import train
train(Path(sys.argv[1]), TrainConfig(**eval(sys.argv[2])), MachineConfig(device="cpu", workers=1),
      base=Path(sys.argv[3]), data=Path(sys.argv[4]))
"""


@pytest.mark.slow
def test_sigkill_in_the_middle_ends_with_the_same_bytes(tmp_path, base, prepared):
    """Killed while it trains and run again, the adapter, the record and the samples are those of an unbroken run."""
    settings = {**STEADY, "max_steps": 12, "save_every": 2, "eval_every": 4, "samples": 1, "batch": 4, "micro_batch": 4}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    train(whole, TrainConfig(**settings), MACHINE, base=base, data=prepared)
    command = [sys.executable, "-c", _CHILD, str(broken), repr(settings), str(base), str(prepared)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    for _ in range(1200):
        if (broken / "checkpoints" / "checkpoint-6" / "complete").exists() or child.poll() is not None:
            break
        time.sleep(0.05)
    assert child.poll() is None, "the training ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (broken / "adapter").exists()
    (broken / "checkpoints" / "checkpoint-99").mkdir()  # a checkpoint cut off while it was written
    train(broken, TrainConfig(**settings), MACHINE, base=base, data=prepared)
    assert digest.of_path(broken) == digest.of_path(whole)
