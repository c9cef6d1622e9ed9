"""The registry room: a run's live mirror in MLflow, versions with their lineage, and aliases that move for a reason.

Nothing here imports MLflow: the functions hand over when they are called, so a kept step and `--help` cost nothing.

    profile.py, database.py                where MLflow lives; a new database, whole or not at all
    live_mirror.py                         the listener and its thread
    sync.py, run_reader.py                 what it copies
    describe.py, state.py                  how a run looks in MLflow, and what its folder remembers of that
    registration.py                        the step `register`
    staging.py, manifest.py                what goes into a version
    model_card.py, evaluation_evidence.py  the card, and the evaluation as it tells it
    deletion.py                            whether a version is still there
    contents.py, lineage.py                whether files are what they are called, and what their steps left
    sealing.py, sbom.py                    what a version carries next to its files
    signing.py, flavor.py                  signatures, and the file by which MLflow loads a version
    pulling.py, fetching.py                the step `champion`; verified copies
    policies.py, objections.py             what is asked of a version
    points.py, weighing.py, served.py      how a version is weighed
    promotion.py, moving.py                promote, rollback
    verification.py, copying.py            bytes compared, and copies into another model
    move_outcome.py                        what came of a move
    promotion_ledger.py, shelves.py        the ledger and where it is kept
    version_records.py, lock.py            what it keeps of versions; one promotion at a time
    stored.py                              what MLflow holds
    overview.py, audit_report.py           what is there, and whether it holds
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
