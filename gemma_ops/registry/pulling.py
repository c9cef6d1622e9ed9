"""The step `champion`: what the registry asks of this run, and the version that it must not be worse than.

It writes `standard.json` (the policy in force, and which version is the champion), the looks that earlier versions took
at their models, and the champion's files in the form in which it answers, each compared with its digest. Where no
registry holds such a model yet, it writes that there is none.

The champion may change afterwards. The step is then kept as it is, and `promote` says that the verdict compared the
version with another one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig, RegisterConfig
from gemma_ops.config.policy import CHAMPION, CHAMPION_LOOKS, CHAMPION_MODEL, STANDARD, ChampionFacts, PromotionStandard
from gemma_ops.errors import GateError
from gemma_ops.family.formats import FORMATS
from gemma_ops.privacy.classes import class_of
from gemma_ops.registry import profile, stored
from gemma_ops.registry.policies import policy_in_force
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import PromotionLedger
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.staging import TOKENIZER
from gemma_ops.registry.version_records import looks_before
from gemma_ops.runs import digest, journal
from gemma_ops.runs.durable import write_json, write_text


def pull_champion(out: Path, settings: RegisterConfig, machine: MachineConfig) -> dict[str, float]:
    """Write the standard for the registered model `settings.name`, and the champion's files where there is one: both of
    `settings.champion_of` where that is set. What earlier versions looked at stays that of the model's own.

    Metrics: `version` of the champion, and `bytes` of what was pulled. Raises GateError for a ledger or files that
    aren't what was written, ServiceError when MLflow can't be reached.
    """
    if machine.mlflow is None:
        return _write(out, PromotionStandard(why_none="machine.mlflow is null"), [])
    tracking = profile.connect_mlflow(machine)
    with profile.mlflow_calls(tracking.place):
        looked = stored.find_model(tracking, str(settings.name))
        seen = PromotionLedger(tracking, looked.name).anchored() if looked else []
        held_to = settings.champion_of or settings.name
        model = stored.find_model(tracking, str(held_to))
        if model is None:
            return _write(out, PromotionStandard(why_none=f"{held_to} has no version yet"), seen)
        entries = PromotionLedger(tracking, model.name).anchored() if held_to != settings.name else seen
        policy = policy_in_force(model.name, entries)
        number = model.aliases.get(CHAMPION)
        keys = machine.trusted_keys
        champion = _pull(tracking, out, model.name, str(number), keys) if number is not None and policy else None
        why = "" if champion else f"{model.name} has no {CHAMPION if policy else 'policy'} yet"
        standard = PromotionStandard(policy=policy.policy if policy else None, champion=champion, why_none=why)
        return _write(out, standard, seen)


def _pull(tracking: Tracking, out: Path, name: str, number: str, keys: Sequence[str]) -> ChampionFacts:
    logged, body = stored.version_manifest(tracking, stored.version(tracking, name, number))
    stored.signed_by(tracking, logged, body, f"version {number} of {name}", keys)
    files: dict[str, Any] = body["subject"]["files"]
    # By itself, the most exact first, else on the base it was made from.
    form = next(each for each in FORMATS.values() if any(path.startswith(f"{each.shelf}/") for path in files))
    places = {form.shelf: CHAMPION_MODEL, TOKENIZER: TOKENIZER}
    for path, file in files.items():
        top = next((top for top in places if path.startswith(f"{top}/")), None)
        if top is None:
            continue
        target = out / places[top] / path.removeprefix(f"{top}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if home := stored.local_store(logged):
            target.symlink_to(home / path)  # as with `fetch`: nothing is copied that lies on this machine
        else:
            with stored.opened_version(tracking, logged, path) as source:
                shutil.move(source, target)
        if digest.of_file(target) != file["sha256"]:
            raise GateError(
                f"the champion of {name}, version {number}, is not what was registered: {path} was changed",
                "roll back to a version that is whole, or register this one again from its run",
            )
        journal.record(file=path, bytes=file["bytes"])
    base = body["subject"]["base"]["files"] or {}
    learned = class_of((body["subject"].get("privacy") or {}).get("learned"))
    return ChampionFacts(name=name, version=number, manifest=body["digest"], form=form.name, base=base, learned=learned)


def _write(out: Path, standard: PromotionStandard, entries: list[Entry]) -> dict[str, float]:
    write_json(out / STANDARD, standard.model_dump(mode="json"), indent=1)
    write_text(
        out / CHAMPION_LOOKS, "".join(f"{json.dumps(look.to_json())}\n" for look in looks_before(entries).values())
    )
    if standard.champion is None:
        journal.record(event="no_champion", reason=standard.why_none)
        return {}
    size = sum(file.stat().st_size for file in (out / CHAMPION_MODEL).rglob("*") if file.is_file())
    return {"version": float(standard.champion.version), "bytes": float(size)}
