"""The step `register` and the manifest, on a real sqlite store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.config import RegisterConfig
from gemma_ops.errors import ConfigError, DataError, ModelError
from gemma_ops.registry import (
    card_usage,
    evaluation_evidence,
    fetching,
    manifest,
    model_card,
    profile,
    served,
    staging,
    stored,
)
from gemma_ops.runs import digest
from tests.helpers import registry_runs as runs


def test_a_version_carries_what_was_asked_and_nothing_else(tmp_path):
    config = runs.config(tmp_path, register={"name": "support-nano", "description": "Routes tickets."})
    artifacts = runs.make(config)
    out = artifacts["register"].path
    record = json.loads((out / "mlflow.json").read_text())
    tracking = profile.connect_mlflow(config.machine)
    version = tracking.client.get_model_version("support-nano", record["version"])
    assert version.source == f"models:/{record['model_id']}"
    assert version.run_id == record["run_id"]
    logged = tracking.client.get_logged_model(record["model_id"])
    assert str(logged.status) == "READY"
    assert set(stored.listing(tracking, logged)) == {
        "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "quantized/q8_0/model.gguf",
        "quantized/q4_0/model.gguf", "verdict.json", "summary.md", "report.html", "manifest.json", "card.md",
        "sbom.cdx.json", "MLmodel",
        "tokenizer/tokenizer.json", "tokenizer/chat_template.jinja",
    }  # fmt: skip
    assert stored.compare_bytes(tracking, logged, json.loads((out / "manifest.json").read_text())) == []
    assert tracking.client.get_registered_model("support-nano").description == "Routes tickets."
    assert not (out / "staging").exists()
    assert artifacts["register"].metrics["version"] == 1


def test_the_models_page_says_what_a_reviewer_needs(tmp_path):
    config = runs.config(tmp_path)
    artifacts = runs.make(config)
    tracking = profile.connect_mlflow(config.machine)
    version = tracking.client.get_model_version("support-nano", "1")
    shown = {key: value for key, value in version.tags.items() if not key.startswith("gemma_ops.")}
    assert (
        shown
        == {
            "verdict": "pass",
            "exact_match": "0.930 [0.910, 0.960]",
            "vs base": "+0.910 [+0.850, +0.960]",
            "base": "nano",
            "answers": "local_only",  # no step recorded what these made-up models learned from
            "carries": "adapter, q4_0, q8_0",
            "adapter": artifacts["train"].digest[:12],
            "data": artifacts["prepare"].digest[:12],
        }
    )
    assert version.description.startswith("Pass: this version passed every gate.")
    logged = tracking.client.get_logged_model(version.source.removeprefix("models:/"))
    measured = {metric.key: metric for metric in logged.metrics}
    assert measured["support_desk/tuned/exact_match/low"].value == pytest.approx(0.91)
    assert measured["support_desk/q4_0-base/exact_match"].value == pytest.approx(0.89)
    assert measured["support_desk/tuned/exact_match"].dataset_digest == ("dd" * 32)[:36]
    assert logged.params["lora.rank"] == "16"


def test_the_manifest_names_everything_that_made_it(tmp_path):
    config = runs.config(tmp_path, train={"seed": 11})
    artifacts = runs.make(config)
    body = json.loads((artifacts["register"].path / "manifest.json").read_text())
    subject = body["subject"]
    assert manifest.check_manifest(body) == digest.of_json(subject)
    assert manifest.missing_lineage(body) == []
    assert subject["base"]["files"]["model.safetensors"] == "aa" * 32
    assert subject["template"] == "bb" * 32
    assert subject["data"]["rows"] == 34
    assert subject["data"]["privacy"] == {"any": 34}
    assert subject["data"]["files"]["train.jsonl"]["sha256"] == digest.of_file(
        artifacts["prepare"].path / "train.jsonl"
    )
    assert subject["adapter"]["sha256"] == digest.of_file(artifacts["train"].path / "adapter/adapter_model.safetensors")
    assert set(subject["quantized"]["formats"]) == {"bf16", "q8_0", "q4_0"}
    assert subject["settings"]["train"]["lora"]["rank"] == 16
    assert subject["seed"] == 11
    assert subject["evaluation"]["tasks"] == {"support_desk": {"digest": "dd" * 32, "rows": 120}}
    assert subject["evaluation"]["verdict_sha256"] == digest.of_file(artifacts["evaluate"].path / "verdict.json")
    assert body["made"]["packages"]["transformers"]


def test_registering_again_finds_the_version_and_changes_nothing(tmp_path):
    config = runs.config(tmp_path)
    first = runs.make(config)
    again = runs.make(config, redo=("register",))
    assert again["register"].metrics["version"] == 1
    assert again["register"].digest == first["register"].digest
    tracking = profile.connect_mlflow(config.machine)
    assert len(stored.registered_versions(tracking, "support-nano")) == 1
    assert len(tracking.client.search_logged_models([tracking.experiment_id])) == 1


def test_other_weights_are_another_version(tmp_path):
    runs.make(runs.config(tmp_path))
    config = runs.config(tmp_path, name="second", train={"seed": 8})
    assert runs.make(config)["register"].metrics["version"] == 2


@pytest.mark.parametrize("folder", ["adapter", None])
def test_a_half_made_model_is_finished_or_thrown_away_and_never_taken_for_whole(tmp_path, folder):
    """What a process leaves that died between the first file and the last: a PENDING model with a torn file. One with
    a file that doesn't belong there can't be finished and is made anew."""
    config = runs.config(tmp_path)
    artifacts = runs.make(config, until="evaluate")
    steps = {"adapter": "train", "quantized": "quantize", "evaluation": "evaluate"}
    inputs = {key: artifacts[step].path for key, step in steps.items()}
    files = staging.select_files(config.register_, model=artifacts["fetch"].path, **inputs)
    body = manifest.build_manifest(
        config.register_, files, model=artifacts["fetch"].path, data=artifacts["prepare"].path, **inputs
    )
    tracking = profile.connect_mlflow(config.machine)
    tags = {stored.TAG: body["digest"]}
    half = tracking.client.create_logged_model(tracking.experiment_id, name="support-nano", tags=tags)
    torn = tmp_path / "adapter_model.safetensors"
    torn.write_bytes(b"torn")
    (tmp_path / "torn" / (folder or "")).mkdir(parents=True)
    torn.rename(tmp_path / "torn" / (folder or "") / torn.name)
    tracking.client.log_model_artifacts(half.model_id, str(tmp_path / "torn"))
    artifacts = runs.make(config)
    record = json.loads((artifacts["register"].path / "mlflow.json").read_text())
    assert (record["model_id"] == half.model_id) == (folder is not None)
    (logged,) = stored.logged_models(tracking, body["digest"])
    assert str(logged.status) == "READY"
    assert stored.compare_bytes(tracking, logged, body) == []
    assert len(stored.registered_versions(tracking, "support-nano")) == 1


def test_without_tracking_the_manifest_and_the_card_are_written(tmp_path):
    config = runs.config(tmp_path, None)
    artifacts = runs.make(config)
    out = artifacts["register"].path
    assert {path.name for path in out.iterdir()} == {
        "manifest.json", "card.md", "sbom.cdx.json", "MLmodel", "mlflow.json", "artifact.json",
    }  # fmt: skip
    assert "version" not in artifacts["register"].metrics
    assert "machine.mlflow is null" in (tmp_path / "runs/support/logs/register.1.jsonl").read_text()


def test_the_card_can_be_read_by_a_person_and_by_a_hub(tmp_path):
    config = runs.config(
        tmp_path,
        None,
        data={"privacy": "local_only"},
        register={"name": "support-nano", "artifacts": ["adapter", "bf16"]},
    )
    text = (runs.make(config)["register"].path / "card.md").read_text()
    assert text.startswith("---\nlicense: apache-2.0\nbase_model: nano\n")
    assert "| metric | base | tuned | q8_0 | q4_0 |" in text
    assert (
        "| exact_match | 0.020 [0.000, 0.050] | 0.930 [0.910, 0.960] | 0.930 [0.910, 0.960] | 0.910 [0.890, 0.940] |"
        in text
    )
    assert "| tuned − base | +0.910 [+0.850, +0.960] | 120 |" in text
    assert "Privacy classes: 34 local_only. Sources: tickets.jsonl (34)." in text
    assert "weights can repeat what they were trained on" in text
    assert "Not evaluated in the form that is served: bf16." in text
    assert 'PeftModel.from_pretrained(base, "adapter")' in text
    assert "llama-server -m quantized/bf16/model.gguf --jinja" in text
    assert "None" not in text


def test_who_wrote_the_rows_and_under_which_terms_goes_with_the_version(tmp_path):
    artifacts = runs.make(runs.config(tmp_path, None), until="evaluate")
    assert "written by" not in model_card.write_card(_manifest(artifacts), None, "")
    written = {"family": "gemini", "version": "gemini-3.8-flash", "terms": "2026-03-23", "rows": 20}
    own = {"name": "base", "family": "gemma", "version": "", "terms": "", "rows": 10}
    played = {"name": "gemini:x", **written, "rehearsal": True}
    report = {"teachers": [{"name": "gemini:gemini-3.8-flash", **written}, own, played]}
    (artifacts["prepare"].path / "report.json").write_text(json.dumps(report))
    body = _manifest(artifacts)
    assert body["subject"]["data"]["teachers"] == report["teachers"]
    text = model_card.write_card(body, None, "")
    assert (
        "20 rows were written by gemini:gemini-3.8-flash (gemini-3.8-flash) under the Gemini API terms of 2026-03-23: "
        "not for training models that compete with the Gemini API." in text
    )
    assert "10 rows were written by base (version not stated)." in text
    assert "written by gemini:x (gemini-3.8-flash). **An emulator stood in for it" in text


def _manifest(artifacts):
    return manifest.build_manifest(
        RegisterConfig(name="support"), {}, model=artifacts["fetch"].path, data=artifacts["prepare"].path
    )


def test_an_evaluation_of_another_adapter_is_refused(tmp_path):
    config = runs.config(tmp_path, None)
    artifacts = runs.make(config, until="evaluate")
    other = runs.make(runs.config(tmp_path, None, name="other", train={"seed": 99}), until="train")
    with pytest.raises(DataError, match="was made from another adapter"):
        registry.register(
            tmp_path, RegisterConfig(name="m"), config.machine, model=artifacts["fetch"].path,
            adapter=other["train"].path,
            quantized=artifacts["quantize"].path, evaluation=artifacts["evaluate"].path,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "scheduler.pkl", "notes"])
def test_a_file_that_could_run_code_or_tell_too_much_is_refused(tmp_path, name):
    def train(out, settings, machine, *, base, data):
        (out / "adapter").mkdir()
        (out / "adapter" / name).write_bytes(b"x")
        return runs.train(out, settings, machine, base=base, data=data)

    with pytest.raises(DataError, match=f"{name} may not go into a registered version"):
        runs.make(runs.config(tmp_path, None), steps={"train": train})


def test_nothing_to_register_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(ModelError, match="nothing to register"):
        staging.select_files(RegisterConfig(name="m"))
    (tmp_path / "q4_0").mkdir()
    with pytest.raises(ModelError, match=r"has no model\.gguf"):
        staging.select_files(RegisterConfig(name="m", artifacts=("q4_0",)), quantized=tmp_path)


def test_towers_go_with_every_gguf_file(tmp_path):
    for name in ("q8_0/model.gguf", "mmproj/mmproj.gguf"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    (tmp_path / "mmproj" / "config.json").write_text("{}")
    files = staging.select_files(RegisterConfig(name="m", artifacts=("q8_0",)), quantized=tmp_path)
    towers = ["quantized/mmproj/config.json", "quantized/mmproj/mmproj.gguf"]
    assert sorted(files) == [*towers, "quantized/q8_0/model.gguf"]
    assert all(map(fetching.only_format("q8_0"), files))
    assert [name for name in files if fetching.only_format("merged")(name)] == towers[:1]
    subject = {"files": {name: {"bytes": 5} for name in files}}
    assert served.carried_forms(subject) == ["q8_0"]
    assert model_card.carried_files(subject) == ["q8_0", "mmproj"]
    words = card_usage.loading(subject | {"name": "m", "adapter": None}, ["q8_0"])
    assert "--mmproj quantized/mmproj/mmproj.gguf" in words
    (tmp_path / "mmproj" / "mmproj.gguf").unlink()
    with pytest.raises(ModelError, match=r"mmproj has no mmproj\.gguf"):
        staging.select_files(RegisterConfig(name="m", artifacts=("q8_0",)), quantized=tmp_path)


def test_a_name_must_have_been_filled_in(tmp_path):
    with pytest.raises(ConfigError, match=r"register\.name"):
        registry.register(tmp_path, RegisterConfig(), runs.config(tmp_path, None).machine, model=tmp_path)


def test_an_unfinished_step_is_refused(tmp_path):
    artifacts = runs.make(runs.config(tmp_path, None), until="train")
    (artifacts["train"].path / "artifact.json").unlink()
    with pytest.raises(ModelError, match="is no finished step"):
        registry.register(
            tmp_path, RegisterConfig(name="m"), runs.config(tmp_path, None).machine,
            model=artifacts["fetch"].path, adapter=artifacts["train"].path,
        )  # fmt: skip


def test_a_dot_in_the_name_is_allowed(tmp_path):
    config = runs.config(tmp_path, register={"name": "support.v2", "artifacts": ["adapter"]})
    runs.make(config)
    assert registry.show(config.machine, "support.v2").to_json()["versions"][0]["version"] == "1"


def test_a_version_that_was_not_evaluated_says_so(tmp_path):
    config = runs.config(tmp_path)
    artifacts = runs.make(config, until="quantize")
    registry.register(
        tmp_path / "runs",
        RegisterConfig(name="bare"),
        config.machine,
        model=artifacts["fetch"].path,
        adapter=artifacts["train"].path,
    )
    (version,) = registry.show(config.machine, "bare").to_json()["versions"]
    assert version["verdict"] == "not evaluated"
    assert "the verdict" in manifest.missing_lineage(json.loads((tmp_path / "runs/manifest.json").read_text()))


@pytest.mark.parametrize("body", [{}, {"schema": "gemma-ops/verdict@2"}, {"schema": "gemma-ops/verdict@1"}])
def test_a_broken_verdict_is_a_data_error(tmp_path, body):
    (tmp_path / "verdict.json").write_text(json.dumps(body))
    with pytest.raises(DataError, match=r"verdict\.json can't be read: (its schema|verdict: Field required)"):
        evaluation_evidence.read_evidence(tmp_path)
    assert evaluation_evidence.read_evidence(Path("nowhere")) is None
    assert model_card.card_headline(None) == "Not evaluated."


def test_a_full_fine_tune_is_registered_with_its_tensors(tmp_path):
    """A training without an adapter: manifest, card, tags and files speak of what it left instead."""

    def train(out, settings, machine, *, base, data):
        (out / "tuned").mkdir()
        (out / "tuned" / "model-00001-of-00001.safetensors").write_bytes(runs.tensors(b"x" * 900))
        (out / "tuned" / "model.safetensors.index.json").write_text("{}")
        (out / "tuned" / "tuned.json").write_text(json.dumps({"tensors": 7, "parameters": 4000}))
        return {"loss": 0.2, "steps": 20.0}

    config = runs.config(tmp_path, train={"tune": "full", "weights": "bf16"})
    artifacts = runs.make(config, steps={"train": train})
    out = artifacts["register"].path
    body = json.loads((out / "manifest.json").read_text())
    assert body["subject"]["adapter"] is None
    assert body["subject"]["tuned"]["tensors"] == 7
    assert body["subject"]["tuned"]["bytes"] == len(runs.tensors(b"x" * 900))
    assert manifest.missing_lineage(body) == []
    assert "tuned/model-00001-of-00001.safetensors" in body["subject"]["files"]
    page = (out / "card.md").read_text()
    assert "7 tensors (4,000 parameters) changed" in page
    assert "PeftModel" not in page
    assert "library_name: peft" not in page
    tracking = profile.connect_mlflow(config.machine)
    version = tracking.client.get_model_version("support-nano", "1")
    assert version.tags["tuned"] == artifacts["train"].digest[:12]
    logged = tracking.client.get_logged_model(version.source.removeprefix("models:/"))
    assert logged.model_type == "gemma4-full"
