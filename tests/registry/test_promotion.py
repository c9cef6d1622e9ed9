"""Promotion, rollback and the ledger, on a real sqlite store."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.config import RegisterConfig
from gemma_ops.errors import BusyError, ConfigError, GateError, OpsError
from gemma_ops.registry import lock, moving, profile, promotion_ledger, stored
from gemma_ops.runs import digest
from tests.helpers import registry_runs as runs

NAME = "support-nano"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Four versions: 1, 2 and 4 passed, 3 did not. Made once; every test works on a copy at the same path."""
    root = tmp_path_factory.mktemp("promote")
    for name, changes in (
        ("one", {"train": {"seed": 1}}), ("two", {"train": {"seed": 2}}),
        ("three", {"train": {"seed": 3}, "evaluate": {"seed": 8}}), ("four", {"train": {"seed": 4}}),
    ):  # fmt: skip
        runs.make(runs.config(root, name=name, **changes))
    shutil.copytree(root / "mlflow", root / "template")
    return root


@pytest.fixture
def config(template):
    """The machine with a fresh copy. Copied over the same files, so that the open database sees them."""
    client = profile.connect_mlflow(runs.config(template).machine).client
    model = client.get_registered_model(NAME)
    for alias in model.aliases:
        client.delete_registered_model_alias(NAME, alias)
    for version in "1234":
        client.delete_model_version_tag(NAME, version, "override")
    for folder in ("ledger", "artifacts"):
        shutil.rmtree(template / "mlflow" / folder)
        shutil.copytree(template / "template" / folder, template / "mlflow" / folder)
    anchor_anew(runs.config(template))
    return runs.config(template)


def anchor_anew(config) -> None:
    """Anchor the ledger as it is, as if what follows had never been written."""
    tracking = profile.connect_mlflow(config.machine)
    book = promotion_ledger.PromotionLedger(tracking, NAME)
    tracking.client.set_registered_model_tag(NAME, promotion_ledger.HEAD, promotion_ledger.anchor(book.entries()))


def ledger_file(config) -> Path:
    return Path(config.machine.mlflow) / "ledger" / f"{NAME}.jsonl"


def files_of(config, version) -> Path:
    tracking = profile.connect_mlflow(config.machine)
    return stored.local_store(stored.logged_model(tracking, stored.version(tracking, NAME, version)))


def promote(config, version=None, **more):
    return registry.promote(config.machine, NAME, version=version, **{"reason": "because"} | more)


def move(config, version, **more):
    """A promotion whose grounds don't matter here: these versions were made before there was a champion to compare
    with."""
    return promote(config, version, **{"override": "a test of moves"} | more)


def moves(config):
    return [entry for entry in registry.history(config.machine, NAME) if "alias" in entry]


def champion(config):
    return registry.show(config.machine, NAME).to_json()["aliases"].get("champion")


def kinds(config):
    return [(entry["kind"], entry["action"], entry["from"], entry["to"]) for entry in moves(config)]


def test_the_latest_version_that_passed_becomes_champion_and_the_ledger_says_why(config):
    done = promote(config, reason="better on every slice")
    assert (done.version, done.previous, done.changed, done.verdict) == ("4", None, True, "pass")
    assert champion(config) == "4"
    intent, last = moves(config)
    assert (intent["kind"], last["kind"]) == ("intent", "done")
    assert last["reason"] == "better on every slice"
    assert "@" in last["who"]
    assert last["verdict_sha256"] == digest.of_file(files_of(config, 4) / "verdict.json")
    assert done.head == last["hash"] == registry.verify_ledger(config.machine, NAME)


def test_promoting_the_champion_again_changes_nothing_and_says_so(config):
    promote(config, 1)
    before = ledger_file(config).read_bytes()
    again = promote(config, 1)
    assert (again.changed, again.version) == (False, "1")
    assert "already" in again.words
    assert ledger_file(config).read_bytes() == before


def test_a_verdict_that_is_not_pass_is_refused_unless_somebody_answers_for_it(config):
    with pytest.raises(GateError, match="its verdict is fail") as caught:
        promote(config, 3)
    assert caught.value.exit_code == 9
    assert champion(config) is None
    assert moves(config) == []
    done = promote(config, 3, override="demo to the board, rolled back tonight")
    assert done.override == "demo to the board, rolled back tonight"
    assert registry.history(config.machine, NAME)[-1]["override"] == done.override
    shown = next(
        version for version in registry.show(config.machine, NAME).to_json()["versions"] if version["version"] == "3"
    )
    assert shown["tags"]["override"] == done.override


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "quantized/q4_0/model.gguf", "verdict.json"])
def test_one_flipped_bit_is_refused_and_cannot_be_overridden(config, name):
    file = files_of(config, 4) / name
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    with pytest.raises(GateError, match=f"{name} was changed"):
        promote(config, 4, override="I insist")
    assert champion(config) is None


def test_a_missing_or_added_file_is_refused(config):
    (files_of(config, 4) / "summary.md").unlink()
    with pytest.raises(GateError, match=r"summary\.md is missing"):
        promote(config, 4)
    (files_of(config, 2) / "adapter" / "extra.safetensors").touch()
    with pytest.raises(GateError, match="should not be there"):
        promote(config, 2)


def test_a_manifest_made_to_fit_other_bytes_is_refused(config):
    """Changed weights with a manifest recomputed to match: its digest is not the one the version was registered
    under."""
    folder = files_of(config, 4)
    (folder / "quantized/q4_0/model.gguf").write_bytes(b"GGUF other")
    body = json.loads((folder / "manifest.json").read_text())
    body["subject"]["files"]["quantized/q4_0/model.gguf"] = {
        "sha256": digest.of_file(folder / "quantized/q4_0/model.gguf"),
        "bytes": 10,
    }
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(GateError, match="can't be trusted"):
        promote(config, 4)
    body["digest"] = digest.of_json(body["subject"])
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(GateError, match="another than the one registered"):
        promote(config, 4)


def test_a_version_of_somebody_else_is_refused(config):
    client = profile.connect_mlflow(config.machine).client
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source=str(files_of(config, 1)))
    with pytest.raises(GateError, match="not registered by gemma-ops"):
        registry.promote(config.machine, "foreign", reason="x")


def test_expect_guards_against_a_move_in_between(config):
    move(config, 1)
    with pytest.raises(GateError, match=r"champion is version 1, not version 2"):
        move(config, 4, expect=2)
    assert move(config, 4, expect=1).changed
    assert move(config, 4, expect=1).changed is False, "repeated, it is done already"


def test_back_step_by_step_and_no_further(config):
    for version in (1, 2, 4):
        move(config, version)
    assert registry.rollback(config.machine, NAME, reason="complaints").version == "2"
    assert registry.rollback(config.machine, NAME, reason="complaints").version == "1"
    with pytest.raises(OpsError, match="was never another version"):
        registry.rollback(config.machine, NAME, reason="complaints")
    move(config, 4)
    assert registry.rollback(config.machine, NAME, reason="again").version == "1"
    assert champion(config) == "1"


def test_back_to_bytes_that_changed_is_refused(config):
    move(config, 1)
    move(config, 2)
    (files_of(config, 1) / "adapter/adapter_model.safetensors").write_bytes(runs.tensors(b"x" * 32000))
    with pytest.raises(GateError, match="was changed"):
        registry.rollback(config.machine, NAME, reason="x")
    assert champion(config) == "2"


def test_other_aliases_have_histories_of_their_own(config):
    move(config, 1)
    move(config, 2, to="challenger")
    move(config, 4, to="challenger")
    assert registry.rollback(config.machine, NAME, alias="challenger", reason="x").version == "2"
    assert champion(config) == "1"


def test_an_alias_moved_by_hand_is_seen_and_adopted_by_a_promotion(config):
    move(config, 1)
    profile.connect_mlflow(config.machine).client.set_registered_model_alias(NAME, "champion", "2")
    assert registry.show(config.machine, NAME).to_json()["moved_without_ledger"] == ["champion"]
    with pytest.raises(GateError, match="moved without gemma-ops"):
        registry.rollback(config.machine, NAME, reason="x")
    done = move(config, 2)
    assert done.changed
    assert registry.show(config.machine, NAME).to_json()["moved_without_ledger"] == []
    assert registry.rollback(config.machine, NAME, reason="x").version == "1"


def drop_last(config, entries: int) -> None:
    lines = ledger_file(config).read_bytes().splitlines(keepends=True)
    ledger_file(config).write_bytes(b"".join(lines[: len(lines) - entries]))
    anchor_anew(config)


def test_died_after_the_alias_moved_the_next_command_writes_it_down(config):
    move(config, 1)
    move(config, 4)
    drop_last(config, 1)
    assert registry.show(config.machine, NAME).to_json()["interrupted"] == ["champion"]
    done = move(config, 4)
    assert done.changed is False
    assert kinds(config)[-2:] == [("intent", "promote", "1", "4"), ("done", "promote", "1", "4")]
    assert registry.rollback(config.machine, NAME, reason="x").version == "1"


def test_died_before_the_alias_moved_the_intent_is_voided_and_made_again(config):
    move(config, 1)
    move(config, 4)
    drop_last(config, 1)
    profile.connect_mlflow(config.machine).client.set_registered_model_alias(NAME, "champion", "1")
    assert move(config, 4).changed
    assert [kind for kind, *_ in kinds(config)[2:]] == ["intent", "void", "intent", "done"]
    assert champion(config) == "4"


@pytest.mark.parametrize("moved", [True, False])
def test_a_rollback_that_died_is_finished_and_not_made_twice(config, moved):
    for version in (1, 2, 4):
        move(config, version)
    registry.rollback(config.machine, NAME, reason="complaints")
    drop_last(config, 1)
    if not moved:
        profile.connect_mlflow(config.machine).client.set_registered_model_alias(NAME, "champion", "4")
    done = registry.rollback(config.machine, NAME, reason="complaints")
    assert (done.version, champion(config)) == ("2", "2")
    assert "interrupted" in done.words
    assert kinds(config)[-1] == ("done", "rollback", "4", "2")


def test_a_torn_last_line_is_dropped(config):
    move(config, 1)
    with ledger_file(config).open("ab") as file:
        file.write(b'{"n": 3, "kind": "int')
    move(config, 2)
    assert len(moves(config)) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [line.replace(b"because", b"bribery") for line in lines],
        lambda lines: lines[1:],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [b"nonsense\n", *lines[1:]],
    ],
)
def test_a_ledger_that_was_changed_is_not_added_to(config, change):
    move(config, 1)
    move(config, 2)
    lines = ledger_file(config).read_bytes().splitlines(keepends=True)
    ledger_file(config).write_bytes(b"".join(change(lines)))
    for use in (
        lambda: move(config, 4),
        lambda: registry.verify_ledger(config.machine, NAME),
        lambda: registry.show(config.machine, NAME),
    ):
        with pytest.raises(GateError, match="can't be trusted"):
            use()
    assert moving.alias_version(profile.connect_mlflow(config.machine), NAME, "champion") == "2"


def test_two_promotions_at_once_are_one_after_the_other(config, monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.3)
    move(config, 1)
    with (ledger_file(config).parent / f".{NAME}.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="by another process"):
            move(config, 2)
    assert move(config, 2).changed


@pytest.mark.parametrize(
    ("use", "what", "fix"),
    [
        (
            lambda m: registry.promote(m, "suport-nano", reason="x"),
            "no registered model 'suport-nano'",
            "did you mean support-nano",
        ),
        (lambda m: registry.promote(m, NAME, version=9, reason="x"), "has no version 9", "4, 3, 2, 1"),
        (lambda m: registry.rollback(m, NAME, alias="champ", reason="x"), "has no alias 'champ'", "none is set yet"),
        (lambda m: registry.show(m, "zzz"), "no registered model 'zzz'", "there are: "),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(config, use, what, fix):
    with pytest.raises(OpsError, match=what) as caught:
        use(config.machine)
    assert fix in caught.value.fix


@pytest.mark.parametrize("alias", ["latest", "v3", "a b", ""])
def test_an_alias_mlflow_would_refuse_is_refused_first(config, alias):
    with pytest.raises(ConfigError, match="can't be an alias"):
        promote(config, 1, to=alias)


@pytest.mark.parametrize("reason", ["", "   ", "x" * 1001])
def test_a_reason_is_asked_for_and_kept_short(config, reason):
    with pytest.raises(ConfigError, match="--reason"):
        promote(config, 1, reason=reason)


def test_gaps_in_the_lineage_need_an_override(config):
    runs.make(runs.config(Path(config.machine.runs).parent, name="gap"), until="train")
    folder = Path(config.machine.runs) / "gap"
    verdict = Path(config.machine.runs) / "one"
    registry.register(
        folder,
        RegisterConfig(name="gappy"),
        config.machine,
        model=verdict / "fetch",
        adapter=verdict / "train",
        evaluation=verdict / "evaluate",
    )
    with pytest.raises(GateError, match="lacks the training data"):
        registry.promote(config.machine, "gappy", reason="x")
    assert registry.promote(config.machine, "gappy", reason="x", override="data kept elsewhere").changed


def test_show_has_what_the_command_line_prints(config):
    promote(config, 1)
    shown = registry.show(config.machine, NAME).to_json()
    assert [version["version"] for version in shown["versions"]] == ["4", "3", "2", "1"]
    assert [version["verdict"] for version in shown["versions"]] == ["pass", "fail", "pass", "pass"]
    assert shown["versions"][-1]["aliases"] == ["champion"]
    assert shown["versions"][0]["metrics"]["support_desk/tuned/exact_match"] == 0.93
    assert shown["ledger_head"] == shown["ledger"][-1]["hash"]
    json.dumps(shown)
    lines = registry.show(config.machine, NAME).lines()
    assert any(line.split()[0] == "1" and "pass" in line and line.endswith("champion") for line in lines)
    assert any(line.startswith("policy ") and "proposed by version 1" in line for line in lines)
    assert lines[-1].endswith("promote champion none → 1: because; 11 of 11 points")
    assert promote(config, 1).lines()[0] == "support-nano@champion is version 1 already: nothing changed"


def test_the_trail_of_an_alias():
    def done(action, to, alias="champion"):
        return {"kind": "done", "action": action, "alias": alias, "to": to}

    assert promotion_ledger.trail([done("promote", "1"), done("promote", "2"), done("promote", "1")], "champion") == [
        "1",
        "2",
        "1",
    ]
    assert promotion_ledger.trail([done("promote", "1"), done("promote", "2"), done("rollback", "1")], "champion") == [
        "1"
    ]
    assert promotion_ledger.trail([done("promote", "1", "other")], "champion") == []
