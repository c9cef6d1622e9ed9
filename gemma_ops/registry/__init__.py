"""The registry room: a run's live mirror in MLflow, versions with their lineage, and aliases that move for a reason.

Nothing here imports MLflow: the functions hand over when they are called, so a kept step and `--help` cost nothing.

    profile.py   where MLflow lives; preflight; the environment it reads      database.py  a fresh database, whole or not at all
    live_mirror.py      the listener and its thread                                  sync.py, run_reader.py, describe.py, state.py  what it copies
    registration.py  the step `register`                                          staging.py, manifest.py, model_card.py, evaluation_evidence.py  what goes in
    deletion.py  whether a version is still there
    contents.py, lineage.py  whether files are what they are called, and what their steps left
    sealing.py, sbom.py, signing.py, flavor.py  what a version carries beside its files
    pulling.py  the step `champion`; fetching.py  verified copies
    policies.py, objections.py  what is asked of a version        points.py, weighing.py, served.py  how it is weighed
    promotion.py, moving.py, verification.py, copying.py, move_outcome.py  promote, rollback
    promotion_ledger.py, shelves.py, version_records.py, lock.py, stored.py         overview.py, audit_report.py  what is there, and whether it holds
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ops.config import MachineConfig, RegisterConfig

if TYPE_CHECKING:
    from gemma_ops.config.policy import PromotionPolicy
    from gemma_ops.registry.audit_report import AuditReport
    from gemma_ops.registry.live_mirror import Mirror
    from gemma_ops.registry.move_outcome import Promotion
    from gemma_ops.registry.overview import Overview
    from gemma_ops.registry.policies import PolicyInForce
    from gemma_ops.registry.served import ServeNeeds


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
    evaluation: Path | None = None,
) -> dict[str, float]:
    """Make one version of the registered model `settings.name`: the step `register`; see `registration.py`."""
    from gemma_ops.registry.registration import register_step as run

    return run(
        out,
        settings,
        machine,
        model=model,
        data=data,
        adapter=adapter,
        merged=merged,
        quantized=quantized,
        evaluation=evaluation,
    )


def pull_champion(out: Path, settings: RegisterConfig, machine: MachineConfig) -> dict[str, float]:
    """Pull the policy and the present champion of the registered model `settings.name`: the step `champion`; see
    `pulling.py`."""
    from gemma_ops.registry.pulling import pull_policy_champion as run

    return run(out, settings, machine)


def lost_version(machine: MachineConfig, run: Path) -> str | None:
    """Say that the version which a run registered is no longer in MLflow; see `deletion.py`."""
    from gemma_ops.registry.deletion import lost_model_version as ask

    return ask(machine, run)


def mirror(machine: MachineConfig, **options: Any) -> Mirror:
    """Return the listener that mirrors a run in MLflow; it does nothing when `machine.mlflow` is null."""
    from gemma_ops.registry.live_mirror import Mirror as Listener

    return Listener(machine, **options)


def promote(
    machine: MachineConfig,
    name: str,
    *,
    to: str = "champion",
    version: str | int | None = None,
    reason: str,
    override: str | None = None,
    expect: str | int | None = None,
    approved_by: str | None = None,
    needs: ServeNeeds | None = None,
) -> Promotion:
    """Point an alias at a version on which all eleven points hold; see `promotion.py`."""
    from gemma_ops.registry.promotion import promote_version as run

    return run(
        machine, name, to=to, version=version, reason=reason, override=override, expect=expect, approved_by=approved_by,
        needs=needs,
    )  # fmt: skip


def rollback(machine: MachineConfig, name: str, *, alias: str = "champion", reason: str) -> Promotion:
    """Point an alias back at the version it stood at before; see `promotion.py`."""
    from gemma_ops.registry.promotion import rollback_alias as run

    return run(machine, name, alias=alias, reason=reason)


def show_policy(machine: MachineConfig, name: str) -> PolicyInForce:
    """Return the policy that versions of a model are judged by; see `policies.py`."""
    from gemma_ops.registry.policies import show_model_policy as run

    return run(machine, name)


def set_policy(
    machine: MachineConfig, name: str, policy: PromotionPolicy | None, *, reason: str, new_ledger: bool = False
) -> PolicyInForce:
    """Set the policy of a model, with a reason that the ledger keeps; see `policies.py`."""
    from gemma_ops.registry.policies import set_model_policy as run

    return run(machine, name, policy, reason=reason, new_ledger=new_ledger)


def show(machine: MachineConfig, name: str) -> Overview:
    """Return versions, aliases, verdicts, metrics and the end of the ledger; see `overview.py`."""
    from gemma_ops.registry.overview import show_model as run

    return run(machine, name)


def history(machine: MachineConfig, name: str) -> list[dict[str, Any]]:
    """Return all ledger entries of a model, oldest first, after checking their chain."""
    from gemma_ops.registry.overview import model_history as run

    return run(machine, name)


def audit(machine: MachineConfig, name: str, *, everything: bool = False) -> AuditReport:
    """Check everything that the registry says about a model; see `audit_report.py`."""
    from gemma_ops.registry.audit_report import audit_registry as run

    return run(machine, name, everything=everything)


def verify_ledger(machine: MachineConfig, name: str) -> str | None:
    """Return the hash of the last entry of an unbroken ledger. Raises GateError where it breaks."""
    from gemma_ops.registry.overview import verify_model_ledger as run

    return run(machine, name)
