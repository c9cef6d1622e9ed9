"""Full fine-tuning: what learns, what is kept, and that a base with it is the model that was trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from gemma_ops.config import MergeConfig, TrainConfig
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.export import merge
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.modeling import full
from gemma_ops.modeling.load import load_model
from gemma_ops.runs import digest
from gemma_ops.training import train
from tests.helpers import tiny_models
from tests.helpers.checkpoints import KINDS, logits, tiny
from tests.training.test_sft import MACHINE, STEADY, rows

FULL = TrainConfig(tune="full", weights="fp32")


def fetched(kind, folder, source=None):
    """An artifact of `fetch` around a tiny checkpoint."""
    folder.mkdir()
    source = source or tiny(kind)
    (folder / "weights").symlink_to(source)
    files = {file.name: digest.of_file(file) for file in sorted(source.glob("*.safetensors"))}
    body = {"id": f"tiny/{kind}", "revision": None, "size": None, "files": files}
    (folder / "model.json").write_text(json.dumps(body))
    return folder


def prepared(folder):
    folder.mkdir()
    examples = list(rows(8))
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples[:6]))
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples[6:]))
    return folder


def described(base):
    return json.loads((base / "model.json").read_text())


def changed(model, names=(".layers.1.mlp.up_proj.weight", ".layers.3.self_attn.q_proj.weight")):
    """The model with two tensors moved, as a training would."""
    full.unfreeze(model, FULL)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                parameter.mul_(1.5)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_learns_and_nothing_else(kind):
    model = load_model(tiny(kind), weights="fp32", towers=True)
    learns = full.unfreeze(model, FULL)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    towers = {name for name, _ in model.named_parameters() if "vision" in name or "audio" in name}
    assert frozen == towers | {name for name, _ in model.named_parameters() if "embed_tokens_per_layer" in name}
    assert learns == sum(p.numel() for name, p in model.named_parameters() if name not in frozen)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    if kind == "multimodal":
        full.unfreeze(model, TrainConfig(tune="full", lora={"towers": True}))
        assert all(model.get_parameter(name).requires_grad for name in towers)


def test_what_cannot_learn_is_refused():
    with pytest.raises(ConfigError, match="4-bit"):
        full.unfreeze(load_model(tiny("e2b"), weights="nf4"), FULL)
    with pytest.raises(ConfigError, match="has none"):
        full.unfreeze(load_model(tiny("multimodal")), TrainConfig(tune="full", lora={"towers": True}))


@pytest.mark.parametrize(
    "kind, weights",
    [("e2b", "fp32"), ("moe", "fp32"), ("multimodal", "bf16"), ("dense31", "fp32"), ("unified", "bf16")],
)
def test_trained_saved_and_merged_is_the_trained_model(kind, weights, tmp_path, monkeypatch):
    """From one configuration to a whole checkpoint, towers and redundant keys included, bit for bit."""
    kept = []
    save = full.save_full
    monkeypatch.setattr(
        full, "save_full", lambda model, *rest, **how: (kept.append(model), save(model, *rest, **how))[1]
    )
    base, out = fetched(kind, tmp_path / "base"), tmp_path / "train"
    out.mkdir()
    settings = STEADY | {"tune": "full", "weights": weights, "max_steps": 3, "batch": 4, "micro_batch": 4}
    train(out, TrainConfig(**settings), MACHINE, base=base, data=prepared(tmp_path / "data"))
    assert not (out / "adapter").exists()
    record = json.loads((out / "tuned" / "tuned.json").read_text())
    assert record["base"] == f"tiny/{kind}"

    merged = tmp_path / "merge"
    merged.mkdir()
    figures = merge(merged, MergeConfig(canary_prompts=1), MACHINE, base=base, adapter=out)
    assert figures["tensors_updated"] == record["tensors"] > 40
    assert figures["canary/max_adapter_gap"] == 0.0
    (model,) = kept
    after, before = MergedCheckpoint(merged / "model"), MergedCheckpoint(tiny(kind))
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in before.entries:
        wanted = learned[name].data.to(torch.bfloat16) if name in learned else before.read(name)
        assert torch.equal(after.read(name), wanted), name
    again = load_model(merged / "model", weights="fp32")
    rounded = load_model(tiny(kind), weights="fp32")
    rounded.load_state_dict({name: p.data.to(torch.bfloat16) for name, p in learned.items()}, strict=False)
    assert torch.equal(logits(again), logits(rounded))
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == "bf16"):
        trained = logits(model.eval()).float()
    learnt = (trained - logits(load_model(tiny(kind), weights="fp32"))).norm()
    assert (logits(again) - trained).norm() < (0.5 if kind == "moe" else 0.1) * learnt  # rounded to bf16, once


def test_only_what_changed_is_written_in_shards_and_read_back(tmp_path, monkeypatch):
    base = fetched("e2b", tmp_path / "base")
    model = changed(load_model(tiny("e2b")))
    monkeypatch.setattr(full, "_SHARD", 1)
    record = full.save_full(model, tmp_path / "tuned", tiny("e2b"), described(base))
    assert record["tensors"] == 2
    shards = sorted(tmp_path.glob("tuned/*.safetensors"))
    assert [shard.name for shard in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sum(len(load_file(shard)) for shard in shards) == 2
    loaded = full.load_full(load_model(tiny("e2b")), tmp_path / "tuned", base)
    assert torch.equal(logits(loaded), logits(model))


def test_a_death_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    import safetensors.torch

    base = fetched("e2b", tmp_path / "base")
    model = changed(load_model(tiny("e2b")))
    monkeypatch.setattr(full, "_SHARD", 1)
    real, written = safetensors.torch.save_file, []

    def dies(*arguments, **options):
        if written:
            raise KeyboardInterrupt
        written.append(real(*arguments, **options))

    for there in (False, True):
        if there:
            full.save_full(model, tmp_path / "tuned", tiny("e2b"), described(base))
        written.clear()
        monkeypatch.setattr(safetensors.torch, "save_file", dies)
        with pytest.raises(KeyboardInterrupt):
            full.save_full(model, tmp_path / "tuned", tiny("e2b"), described(base))
        monkeypatch.setattr(safetensors.torch, "save_file", real)
        assert (tmp_path / "tuned").exists() == there
    assert len(full.full_entries(tmp_path / "tuned", base)) == 2


def test_nothing_changed_or_diverged_is_refused(tmp_path):
    base = fetched("e2b", tmp_path / "base")
    model = load_model(tiny("e2b"))
    full.unfreeze(model, FULL)
    with pytest.raises(ModelError, match="changed nothing"):
        full.save_full(model, tmp_path / "tuned", tiny("e2b"), described(base))
    model.model.language_model.norm.weight.data[0] = float("nan")
    with pytest.raises(ModelError, match="the training diverged"):
        full.save_full(model, tmp_path / "tuned", tiny("e2b"), described(base))
    assert not (tmp_path / "tuned").exists()


def test_another_base_an_older_format_and_a_torn_folder_are_refused(tmp_path):
    base = fetched("e2b", tmp_path / "base")
    out = tmp_path / "train"
    full.save_full(changed(load_model(tiny("e2b"))), out / "tuned", tiny("e2b"), described(base))
    tiny_models.save("e2b", tmp_path / "other" / "weights", seed=1)  # the same shapes, other numbers
    body = described(base) | {"id": "tiny/other", "files": {"model.safetensors": "00" * 32}}
    (tmp_path / "other" / "model.json").write_text(json.dumps(body))

    def attempt(message, against=base):
        (tmp_path / "merge").mkdir(exist_ok=True)
        with pytest.raises(ModelError, match=message):
            merge(tmp_path / "merge", MergeConfig(), MACHINE, base=against, adapter=out)

    attempt("trained from tiny/e2b with other weights", tmp_path / "other")
    attempt("trained from tiny/e2b with other weights", tmp_path / "other" / "weights")
    attempt("trained from tiny/e2b with other weights", tiny("dense31"))
    with pytest.raises(ModelError, match="does not fit this base"):
        full.load_full(load_model(tiny("e2b"), weights="nf4"), out / "tuned", base)
    record = json.loads((out / "tuned" / "tuned.json").read_text())
    (out / "tuned" / "tuned.json").write_text(json.dumps(record | {"schema": "gemma-ops/tuned@0"}))
    attempt("was written in the format")
    (out / "tuned" / "tuned.json").write_text(json.dumps(record | {"tensors": 3}))
    attempt("does not hold the 3 tensors")
    (out / "tuned" / "tuned.json").write_text(json.dumps(record))
    shard = out / "tuned" / "model-00001-of-00001.safetensors"
    shutil.move(shard, tmp_path / "kept")
    attempt("is missing")
    shard.write_bytes((tmp_path / "kept").read_bytes()[:-10])
    attempt("cut short")


def test_the_step_is_that_of_the_plain_classes():
    """Loss and every gradient of a full fine-tune with our kernels and head, and of transformers' own model."""
    from gemma_ops.training.sft import prepare_model
    from tests.helpers.checkpoints import close, gradients, whole

    ids = torch.arange(110, 150)[None]
    for kind in ("e2b", "moe"):
        ours = prepare_model(load_model(tiny(kind), weights="fp32"), FULL).train()
        theirs = whole(kind).train()
        where, targets = torch.arange(39), ids[0, 1:]
        loss = ours(input_ids=ids, targets=targets, where=where, divisor=39.0, cu_seq_lens_q=[0, 40]).loss
        loss.backward()
        reference = theirs(input_ids=ids, labels=ids, use_cache=False).loss
        reference.backward()
        assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
        found = gradients(ours)
        wanted = {
            name: gradient for name, gradient in gradients(theirs).items() if "embed_tokens_per_layer" not in name
        }
        assert close(found, wanted) < 1e-4


def test_a_full_run_goes_on_after_its_last_checkpoint(tmp_path, monkeypatch):
    """Stopped by an error and run again, the tensors are those of an unbroken run."""
    from gemma_ops.training import trainer

    base, data = fetched("e2b", tmp_path / "base"), prepared(tmp_path / "data")
    settings = TrainConfig(**STEADY | {"tune": "full", "max_steps": 4, "save_every": 2, "batch": 4, "micro_batch": 4})
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole", settings, MACHINE, base=base, data=data)
    real, calls = trainer.StepTrainer.training_step, []

    def fails(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(trainer.StepTrainer, "training_step", fails)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", settings, MACHINE, base=base, data=data)
    monkeypatch.setattr(trainer.StepTrainer, "training_step", real)
    assert not (tmp_path / "broken" / "tuned").exists()
    train(tmp_path / "broken", settings, MACHINE, base=base, data=data)
    assert digest.of_path(tmp_path / "broken") == digest.of_path(tmp_path / "whole")


def test_early_stop_keeps_the_best_tensors(tmp_path):
    """Of a training that gets worse, what is kept is the best validation's."""
    base, out = fetched("e2b", tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    changes = {"tune": "full", "eval_every": 1, "early_stop": 3, "learning_rate": 1.0, "max_steps": 4}
    train(out, TrainConfig(**STEADY | changes), MACHINE, base=base, data=prepared(tmp_path / "data"))
    records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
    *during, kept = [record["eval_loss"] for record in records if "eval_loss" in record]
    assert during[-1] > min(during)
    assert kept == pytest.approx(min(during), rel=1e-6)


def test_the_usual_rate_is_a_tenth_of_an_adapters(tmp_path):
    base, data, rates = fetched("e2b", tmp_path / "base"), prepared(tmp_path / "data"), {}
    for tune in ("lora", "full"):
        (tmp_path / tune).mkdir()
        settings = TrainConfig(**STEADY | {"tune": tune, "learning_rate": None, "max_steps": 1})
        rates[tune] = train(tmp_path / tune, settings, MACHINE, base=base, data=data)["learning_rate"]
    assert rates["full"] == pytest.approx(rates["lora"] / 10)
