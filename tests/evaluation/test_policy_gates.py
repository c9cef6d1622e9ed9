"""What the registry asks of an evaluation: gates that no configuration softens, and the champion beside the others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import gemma_ops
from gemma_ops.answer import Prompt
from gemma_ops.config import EvaluateConfig, GateConfig, LoraConfig, MachineConfig
from gemma_ops.config.policy import ChampionFacts, PolicyTask, PromotionPolicy, PromotionStandard
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation import evaluate, summary_lines
from gemma_ops.evaluation.looks import known_looks
from gemma_ops.evaluation.policy_gates import hold_to_standard, read_standard
from gemma_ops.modeling import adapter_files, adapters, load
from gemma_ops.runs import journal
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import learned_by
from gemma_ops.verdicts import Look, Verdict

NANO = Path(gemma_ops.__file__).parent / "nano" / "weights"
BETTER = GateConfig(task="t", metric="exact_match", test="superior", versus="base", margin=0.2)
CLOSE = GateConfig(task="t", metric="exact_match", test="noninferior", versus="champion", margin=0.05)
CHAMPION = ChampionFacts(name="m", version="4", manifest="ab" * 32, form="merged")
POLICY = PromotionPolicy(
    gates=(BETTER, CLOSE), tasks={"t": PolicyTask(digest="dd", rows=9, primary="exact_match")}, confidence=0.95
)
FULL = PromotionStandard(policy=POLICY, champion=CHAMPION)


def task(digest="dd", shows=()):
    return SimpleNamespace(name="t", digest=digest, shows=frozenset(shows))


def held(standard=FULL, *, here=("base", "tuned", "champion"), found=None, **settings):
    config = EvaluateConfig(**{"targets": ("base", "tuned")} | settings)
    return hold_to_standard(config, standard, [found or task()], lambda name: name in here)


def asked(settings):
    return [(gate.target, gate.versus, gate.margin) for gate in settings.gates]


def test_the_policys_gates_come_first_and_own_ones_are_added():
    own = {"metric": "exact_match", "test": "at_least", "margin": 0.7}
    found = held(gates=[own])
    assert asked(found) == [("tuned", "base", 0.2), ("tuned", "champion", 0.05), ("tuned", None, 0.7)]
    assert found.targets == ("base", "tuned", "champion")


@pytest.mark.parametrize(("own", "kept"), [(0.0, 0.2), (0.5, 0.5)], ids=["softer", "stricter"])
def test_of_two_gates_that_ask_the_same_the_stricter_stays(own, kept):
    found = held(gates=[BETTER.model_copy(update={"task": None, "margin": own})])
    assert asked(found) == [("tuned", "base", kept), ("tuned", "champion", 0.05)]


def test_targets_that_the_gates_ask_about_answer_and_confidence_only_rises():
    found = held(targets=("tuned",), confidence=0.8)
    assert (found.targets, found.confidence) == (("tuned", "base", "champion"), 0.95)
    assert held(confidence=0.99).confidence == 0.99


def test_what_can_not_be_asked_here_is_left_out_and_told(tmp_path):
    service = BETTER.model_copy(update={"versus": "gemini:gemini-3.8-flash"})
    standard = FULL.model_copy(update={"policy": POLICY.model_copy(update={"gates": (BETTER, service)})})
    with journal.writing(tmp_path, "evaluate", lambda *_: None):
        assert asked(held(standard)) == [("tuned", "base", 0.2)], "a service is not asked unless the run names it"
        assert asked(held(found=task(digest="ee"))) == []
    log = (tmp_path / "evaluate.1.jsonl").read_text()
    assert "gemini:gemini-3.8-flash can't be asked here" in log
    assert "its questions of t aren't here" in log


def test_a_champion_that_reads_text_only_is_not_asked_what_shows_something(tmp_path):
    quantized = FULL.model_copy(update={"champion": CHAMPION.model_copy(update={"form": "q8_0"})})
    with journal.writing(tmp_path, "evaluate", lambda *_: None):
        found = held(quantized, found=task(shows=["image"]))
    assert found.targets == ("base", "tuned")
    assert "carries no checkpoint that sees or hears" in (tmp_path / "evaluate.1.jsonl").read_text()
    assert "champion" in held(FULL, found=task(shows=["image"])).targets


def test_without_a_champion_or_a_policy_nothing_is_compared_with_one():
    none = PromotionStandard(policy=POLICY, why_none="m has no champion yet")
    assert asked(held(none)) == [("tuned", "base", 0.2)]
    own = held(PromotionStandard(), targets=("base", "tuned", "champion"), gates=[CLOSE, BETTER])
    assert (own.targets, asked(own)) == (("base", "tuned"), [("tuned", "base", 0.2)])


def test_looks_that_registered_versions_took_count_once(tmp_path):
    look = Look(subjects=("t a b",), evidence="e", rows=9, level=0.02, verdict="fail")
    own = tmp_path / "run" / "evaluate.looks.jsonl"
    own.parent.mkdir()
    own.write_text(look.model_dump_json() + "\n")
    other = look.model_copy(update={"evidence": "f"})
    assert known_looks(tmp_path / "run" / "evaluate", [other, look]) == [other, look]


def test_a_damaged_standard_is_told(tmp_path):
    (tmp_path / "standard.json").write_text("{")
    with pytest.raises(DataError, match=r"standard\.json can't be read"):
        read_standard(tmp_path)
    assert read_standard(None).policy is None


def pulled(folder: Path, standard: PromotionStandard) -> Path:
    """What the step `champion` leaves: here nano itself is the champion."""
    folder.mkdir()
    (folder / "standard.json").write_text(standard.model_dump_json())
    (folder / "model").symlink_to(NANO)
    return folder


def test_the_champion_answers_the_same_questions_as_the_others(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    body = {
        "schema": "gemma-ops/eval-task@1", "name": "t", "version": 1, "data": {"path": "data.jsonl"}, "privacy": "any",
        "metrics": ["exact_match"], "primary": "exact_match", "generation": {"max_new_tokens": 3},
    }  # fmt: skip
    (folder / "task.yaml").write_text(yaml.safe_dump(body))
    rows = [{"id": f"q{i}", "prompt": f"say {i}", "reference": str(i)} for i in range(3)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from gemma_ops.tasks.task import load_task

    tasks = {"t": PolicyTask(digest=load_task(folder).digest, rows=3, primary="exact_match")}
    standard = FULL.model_copy(update={"policy": POLICY.model_copy(update={"tasks": tasks})})
    out = tmp_path / "run" / "evaluate"
    out.mkdir(parents=True)
    settings = EvaluateConfig(tasks=("t",), targets=("tuned",))
    champion = pulled(tmp_path / "champion", standard)
    evaluate(out, settings, MachineConfig(), base=NANO, tuned=NANO, champion=champion, tasks=(folder,))
    verdict = json.loads((out / "verdict.json").read_text())
    assert [result["target"] for result in verdict["results"]] == ["tuned", "base", "champion"]
    assert [(gate["versus"], gate["n"]) for gate in verdict["gates"]] == [("base", 3), ("champion", 3)]
    assert verdict["standard"]["champion"]["version"] == "4"
    assert verdict["standard"]["policy"]["confidence"] == 0.95
    assert "  champion is version 4 of m (merged)" in summary_lines(Verdict.parse(verdict))
    texts = {target: [] for target in ("tuned", "champion")}
    for line in (out / "answers.jsonl").read_text().splitlines():
        answer = json.loads(line)
        texts.setdefault(answer["target"], []).append((answer["row"], answer["text"]))
    assert sorted(texts["champion"]) == sorted(texts["tuned"])


def test_a_champion_that_is_an_adapter_answers_on_its_own_base_and_on_no_other(tmp_path):
    model = adapters.attach(load.load_model(NANO), LoraConfig(rank=4, alpha=8), 7)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    facts = CHAMPION.model_copy(update={"form": "adapter", "base": {"model.safetensors": "aa", "config.json": "x"}})
    folder = tmp_path / "champion"
    folder.mkdir()
    (folder / "standard.json").write_text(FULL.model_copy(update={"champion": facts}).model_dump_json())
    adapter_files.save_adapter(model, folder / "model", "nano", None)
    base = tmp_path / "base"
    base.mkdir()
    (base / "weights").symlink_to(NANO)
    (base / "model.json").write_text(json.dumps({"files": {"model.safetensors": "aa", "config.json": "y"}}))
    assert read_standard(folder, base).champion == facts
    prompts = [[Prompt(({"role": "user", "content": "Which shelf holds the amber jar?"},), "any", "q")]]

    def text(name):
        target = open_target(
            name, MachineConfig(), run="r", use="evaluate", models=RunModels(base=base, champion=folder)
        )
        return next(iter(target.answer(prompts, max_new_tokens=6)))[0].text

    assert text("champion") != text("base")
    (base / "model.json").write_text(json.dumps({"files": {"model.safetensors": "bb"}}))
    with journal.writing(tmp_path, "evaluate", lambda *_: None):
        assert read_standard(folder, base).champion is None
    assert "carries nothing that answers without its own base" in (tmp_path / "evaluate.1.jsonl").read_text()


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_champion_is_as_private_as_the_rows_it_learned_from(tmp_path, form):
    """nano's own weights learned nothing private; what the version's manifest says counts, and silence is the
    strictest."""
    for number, (learned, wanted) in enumerate({"paid": "paid", "any": "any", None: "local_only"}.items()):
        facts = CHAMPION.model_copy(update={"form": form} | ({"learned": learned} if learned else {}))
        folder = pulled(tmp_path / str(number), FULL.model_copy(update={"champion": facts}))
        target = open_target(
            "champion", MachineConfig(), run="r", use="evaluate", models=RunModels(base=NANO, champion=folder)
        )
        assert learned_by(target) == wanted


def test_without_a_champion_the_target_says_why(tmp_path):
    folder = pulled(tmp_path / "champion", PromotionStandard(why_none="m has no champion yet"))
    for given, why in ((folder, "m has no champion yet"), (None, "this recipe asks no registry")):
        with pytest.raises(ConfigError, match=f"there is none to compare with .{why}"):
            open_target("champion", MachineConfig(), run="r", use="evaluate", models=RunModels(champion=given))
