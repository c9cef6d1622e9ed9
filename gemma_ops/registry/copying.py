"""Promotion into another registered model, `NAME` to `NAME-prod`, so that the right to register isn't the right to
promote.

In MLflow, who may make versions of a model may move its aliases too. Two models part the two: trainers may edit the
one, promoters the other. The copy carries no bytes: it points at the same stored files, and the other model's ledger
says which version of which model it is, and where that one's ledger stood.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace

from gemma_ops.config.policy import CHAMPION
from gemma_ops.errors import ConfigError
from gemma_ops.registry import promotion_ledger, stored
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.promotion_ledger import COPY_HEAD, PromotionLedger
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.verification import CheckedVersion
from gemma_ops.registry.version_records import look_of, weights_of

PRODUCTION = "-prod"
"""Ending of the other model's name, by custom: `--to NAME-prod` then needs no alias."""


def production_model(name: str, to: str) -> tuple[str, str]:
    """Return the registered model and the alias that `--to` means: an alias of `name`, `MODEL@ALIAS`, or `NAME-prod`,
    whose `champion` it is. Raises ConfigError for a `MODEL@ALIAS` without one of the two."""
    model, at, alias = to.partition("@")
    if at and not (model and alias):
        raise ConfigError(f"--to {to!r} names no alias of a model", "write MODEL@ALIAS, or an alias")
    if at:
        return model, alias
    return (to, CHAMPION) if to == f"{name}{PRODUCTION}" else (name, to)


def copy_of(tracking: Tracking, model: str, checked: CheckedVersion) -> str | None:
    """Return the number of the version of `model` that carries this manifest; None where there is none yet."""
    known = stored.registered_versions(tracking, model, checked.digest)
    return str(known[-1].version) if known else None


def copy_version(
    tracking: Tracking, book: PromotionLedger, name: str, checked: CheckedVersion, origin: list[Entry]
) -> CheckedVersion:
    """Copy a version of `name` into the model of `book`, once, record where it is from, and return it under its new
    number. A crash in between leaves what the next call finishes."""
    client, model, source = tracking.client, book.name, f"{name}/{checked.version}"
    number = copy_of(tracking, model, checked)
    if number is None:
        with contextlib.redirect_stderr(io.StringIO()):  # it says on the terminal what is said better below
            client.copy_model_version(f"models:/{source}", model)
        number = copy_of(tracking, model, checked)
        assert number is not None
    found = stored.version(tracking, model, number)
    if stored.is_copied_version(found):
        home = stored.logged_model(tracking, found).model_id
        for tag, value in ((stored.LOGGED, home), (stored.ORIGIN, source)):
            client.set_model_version_tag(model, number, tag, value)
    if not any(entry["kind"] == "version" and entry["version"] == number for entry in book.entries()):
        look = look_of(checked.verdict)
        book.append(
            "version", version=number, manifest=checked.digest, verdict=checked.outcome, run="",
            weights=weights_of(checked.manifest["subject"]), look=look.to_json() if look else None,
            origin={"model": name, "version": checked.version, "ledger": promotion_ledger.anchor(origin)},
        )  # fmt: skip
    client.set_model_version_tag(model, number, COPY_HEAD, promotion_ledger.anchor(book.entries()))
    return replace(checked, version=number, origin=source)
