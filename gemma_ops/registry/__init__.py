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

from typing import TYPE_CHECKING

from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.registry.audit_report import audit
    from gemma_ops.registry.deletion import lost_version
    from gemma_ops.registry.live_mirror import mirror
    from gemma_ops.registry.overview import history, show, verify_ledger
    from gemma_ops.registry.policies import set_policy, show_policy
    from gemma_ops.registry.promotion import promote, rollback
    from gemma_ops.registry.pulling import pull_champion
    from gemma_ops.registry.registration import register
else:
    register = later("gemma_ops.registry.registration", "register")
    pull_champion = later("gemma_ops.registry.pulling", "pull_champion")
    lost_version = later("gemma_ops.registry.deletion", "lost_version")
    promote = later("gemma_ops.registry.promotion", "promote")
    rollback = later("gemma_ops.registry.promotion", "rollback")
    show_policy = later("gemma_ops.registry.policies", "show_policy")
    set_policy = later("gemma_ops.registry.policies", "set_policy")
    show = later("gemma_ops.registry.overview", "show")
    history = later("gemma_ops.registry.overview", "history")
    verify_ledger = later("gemma_ops.registry.overview", "verify_ledger")
    audit = later("gemma_ops.registry.audit_report", "audit")
    mirror = later("gemma_ops.registry.live_mirror", "mirror")

__all__ = [
    "audit",
    "history",
    "lost_version",
    "mirror",
    "promote",
    "pull_champion",
    "register",
    "rollback",
    "set_policy",
    "show",
    "show_policy",
    "verify_ledger",
]
