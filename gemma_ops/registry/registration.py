"""The step `register`: one version in MLflow's registry for one manifest, however often it is interrupted.

The weights become a LoggedModel (one copy, no model is loaded, nothing is fetched) and the version points at it. Every
object carries the manifest's digest as a tag and is looked for by it before it is made; a LoggedModel is READY only
after its files were compared with the manifest, and a version is made only of a READY one. So a crash at any point
leaves something the next attempt finds and finishes, and nothing half-made that a reader would take for whole.
"""

from __future__ import annotations

import calendar
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig, RegisterConfig
from gemma_ops.errors import ConfigError, ServiceError
from gemma_ops.privacy.classes import release_of
from gemma_ops.registry import (
    describe,
    evaluation_evidence,
    manifest,
    model_card,
    profile,
    run_reader,
    sealing,
    staging,
    stored,
    version_records,
)
from gemma_ops.registry import state as memory
from gemma_ops.registry.evaluation_evidence import EvaluationEvidence
from gemma_ops.registry.profile import Tracking
from gemma_ops.runs import journal
from gemma_ops.runs.durable import write_json

_BATCH = 1000  # MLflow's limit on metrics in one call


def register(
    out: Path,
    settings: RegisterConfig,
    machine: MachineConfig,
    *,
    model: Path,
    data: Path | None = None,
    adapter: Path | None = None,
    merged: Path | None = None,
    quantized: Path | None = None,
    drafter: Path | None = None,
    evaluation: Path | None = None,
) -> dict[str, float]:
    """Write `manifest.json`, `card.md`, `sbom.cdx.json` and `mlflow.json`, and make the version, signed where there is
    a key; with tracking off its number is null there.

    Metrics: `version` (its number), `files` and `bytes` of what it carries. Raises ConfigError without a name,
    ModelError and DataError for artifacts that don't fit together, ServiceError when MLflow can't be reached.
    """
    if not settings.name:
        raise ConfigError("register.name is not set", "give the model a name: --set register.name=…")
    weights = {
        "adapter": adapter, "merged": merged, "quantized": quantized, "drafter": drafter, "evaluation": evaluation
    }  # fmt: skip
    tracking = profile.connect_mlflow(machine) if machine.mlflow else None
    quotes = not (tracking and tracking.leaves_machine and describe.keeps_rows(out.parent))
    mark = None
    if tracking:
        with profile.mlflow_calls(tracking.place):
            mark = version_records.check_ledger(tracking, str(settings.name))
    chosen = staging.select_files(
        settings, model=merged or model, quotes=quotes, leaves=bool(tracking and tracking.leaves_machine), **weights
    )
    body = manifest.build_manifest(
        settings, chosen, model=model, data=data, ledger=mark, release=release_of(machine), **weights
    )
    found = evaluation_evidence.read_evidence(evaluation) if evaluation else None
    carried = {
        "files": float(len(chosen)),
        "bytes": float(sum(file["bytes"] for file in body["subject"]["files"].values())),
    }
    if tracking is None:
        sealing.write_own(out, body, model_card.write_card(body, found, settings.description))
        write_json(out / "mlflow.json", {"name": settings.name, "version": None, "manifest": body["digest"]})
        journal.record(
            event="unregistered", reason="machine.mlflow is null; with one set, --redo register registers it"
        )
        return carried
    with profile.mlflow_calls(tracking.place):
        # The step's folder lies in the run's: version and run refer to each other in MLflow.
        parent = memory.parent_run(tracking, out.parent)["run_id"]
        work = _Work(tracking, str(settings.name), settings.description, body, found, parent, _made_at(evaluation))
        logged = work.logged_model(chosen, out / "staging", machine.signing_key)
        number = work.version(logged)
        # What is stored decides: registered before by other code, it has its own account of that code.
        body = stored.read_manifest(tracking, logged)
        verdict = found.verdict if found else None
        told = version_records.record_version(
            tracking, work.name, number, body, verdict, out.parent.name, settings.asks
        )
        for name in stored.own_files(logged):
            with stored.opened_version(tracking, logged, name) as file:
                shutil.copyfile(file, out / name)
    for line in told:
        journal.record(message=line)
    record = {
        "name": settings.name,
        "version": str(number),
        "model_id": logged.model_id,
        "run_id": parent,
        "tracking_uri": tracking.place.uri,
        "manifest": body["digest"],
    }
    write_json(out / "mlflow.json", record)
    journal.record(
        event="registered", **{key: value for key, value in record.items() if key != "version"}, number=number
    )
    return {"version": float(number), **carried}


@dataclass(frozen=True)
class _Work:
    """Registration of one manifest in one place."""

    tracking: Tracking
    name: str
    description: str
    body: dict[str, Any]
    found: EvaluationEvidence | None
    parent: str
    evaluated: int

    def logged_model(self, chosen: dict[str, Path], stage: Path, key: str | None) -> Any:
        """Return the READY LoggedModel of this manifest: found, finished or made, and signed with `key`."""
        client, manifest_digest = self.tracking.client, self.body["digest"]
        known = stored.logged_models(self.tracking, manifest_digest)
        ready = [one for one in known if str(one.status) == "READY"]
        if ready:
            logged = sealing.complete_own(self.tracking, ready[0], stage)
            sealing.sign_version(self.tracking, logged, self.body, key, stage)
            return logged
        expected = {name: file["bytes"] for name, file in self.body["subject"]["files"].items()}
        usable = [one for one in known if not set(stored.listing(self.tracking, one)) - set(expected) - stored.BESIDE]
        if not usable:
            self._create()
            seen = {one.model_id for one in known}
            usable = [one for one in stored.logged_models(self.tracking, manifest_digest) if one.model_id not in seen]
        logged = usable[0]
        for other in stored.logged_models(self.tracking, manifest_digest):
            if other.model_id != logged.model_id:  # not usable, or of a request repeated after a cut connection
                client.delete_logged_model(other.model_id)
        staging.link(chosen, stage)
        sealing.write_own(stage, self.body, model_card.write_card(self.body, self.found, self.description))
        journal.record(event="uploading", files=len(chosen))
        client.log_model_artifacts(logged.model_id, str(stage))
        if problems := stored.compare_sizes(self.tracking, logged, expected):
            raise ServiceError(
                f"MLflow did not keep what was sent: {'; '.join(problems[:3])}", "run the same command again"
            )
        sealing.tag_own(self.tracking, logged.model_id, stage)
        shutil.rmtree(stage)
        sealing.sign_version(self.tracking, client.get_logged_model(logged.model_id), self.body, key, stage)
        self._metrics(logged.model_id)
        self._link(logged.model_id)
        return client.finalize_logged_model(logged.model_id, "READY")

    def version(self, logged: Any) -> int:
        """Return the number of the one version that carries this manifest: found or made."""
        from mlflow.exceptions import MlflowException

        client, manifest_digest = self.tracking.client, self.body["digest"]
        try:
            client.create_registered_model(
                self.name, description=model_card.introduction(self.body["subject"], self.description)
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = stored.registered_versions(self.tracking, self.name, manifest_digest)
        if not known:
            client.create_model_version(
                self.name,
                source=f"models:/{logged.model_id}",
                model_id=logged.model_id,  # a server asks for it besides the source
                run_id=self.parent,
                tags=model_card.card_tags(self.body, self.found)
                | {tag: logged.tags[tag] for tag in stored.OWN.values() if tag in logged.tags},
                description=model_card.card_headline(self.found),
            )
            known = stored.registered_versions(self.tracking, self.name, manifest_digest)
        first, *surplus = sorted(known, key=lambda version: int(version.version))
        for other in surplus:  # a request repeated after a cut connection
            client.delete_model_version(self.name, other.version)
        # The link from the LoggedModel's page to the version; MLflow's own clients write it too.
        link = json.dumps([{"name": self.name, "version": str(first.version)}])
        client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
        sealing.tag_version(self.tracking, self.name, first, logged)
        return int(first.version)

    def _create(self) -> None:
        subject = self.body["subject"]
        kinds = {
            "lora": subject["adapter"],
            "full": subject.get("tuned"),
            "merged": subject["merged"],
            "quantized": subject["quantized"],
        }
        self.tracking.client.create_logged_model(
            self.tracking.experiment_id,
            name=self.name.replace(".", "-"),  # MLflow allows no dot here, though it does in a registered model's name
            source_run_id=self.parent,
            tags={
                **model_card.card_tags(self.body, self.found),
                "mlflow.note.content": model_card.card_headline(self.found),
            },
            params=run_reader.flatten(subject["settings"].get("train", {})),
            model_type="gemma4-" + next(kind for kind, there in kinds.items() if there),
        )

    def _link(self, model_id: str) -> None:
        """Name the model as an output of the run. MLflow refuses to be told twice, so what is there already is left."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        def there() -> bool:
            outputs = self.tracking.client.get_run(self.parent).outputs
            return any(output.model_id == model_id for output in (outputs.model_outputs if outputs else ()))

        if there():
            return
        try:
            self.tracking.client.log_outputs(self.parent, [LoggedModelOutput(model_id, step=0)])
        except MlflowException:
            if not there():  # else the HTTP layer repeated a request whose answer was lost
                raise

    def _metrics(self, model_id: str) -> None:
        """Log the evaluation's figures on the LoggedModel, each with its bounds."""
        from mlflow.entities import Metric

        if self.found is None:
            return
        digests = {name: task.digest[:36] for name, task in self.found.tasks.items()}
        values = []
        for figure in (*self.found.figures, *self.found.differences):
            name = f"{figure.task}/{figure.target}{f'-{figure.versus}' if figure.versus else ''}/{figure.metric}"
            for suffix, value in (("", figure.value), ("/low", figure.low), ("/high", figure.high)):
                key, data = run_reader.metric_key(name + suffix), (figure.task, digests[figure.task])
                # The evaluation's own time, so that sending them again after a crash changes nothing.
                at = self.evaluated
                values.append(
                    Metric(key, value, at, 0, model_id=model_id, dataset_name=data[0], dataset_digest=data[1])
                )
        for start in range(0, len(values), _BATCH):
            self.tracking.client.log_batch(self.parent, metrics=values[start : start + _BATCH])


def _made_at(evaluation: Path | None) -> int:
    """Return when the evaluation was finished, in milliseconds since 1970; 0 without one."""
    made = (run_reader.read_step_json(evaluation / "artifact.json") or {}).get("made") if evaluation else None
    return calendar.timegm(time.strptime(made["at"], "%Y-%m-%dT%H:%M:%SZ")) * 1000 if made else 0
