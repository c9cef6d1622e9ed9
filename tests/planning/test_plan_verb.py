"""`plan` as a person meets it: the verdict, the one change that makes it fit, the numbers' honesty, wrong input."""

from __future__ import annotations

import json
import sys

import pytest

from gemma_ops import family
from gemma_ops.config import RunConfig
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.nano import nano_shape as nano
from gemma_ops.planning import plan, plan_lines
from gemma_ops.planning.training_step import GIB
from tests.helpers import patience

QLORA = {"weights": "nf4", "checkpointing": "all", "micro_tokens": 2048}
PADDED = {
    "packing": False,
    "checkpointing": "none",
    "kernels": {"attention": "sdpa", "head": "trl", "lora": "peft", "norms": "eager"},
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No run folder of this checkout may change an answer."""
    monkeypatch.chdir(tmp_path)


def _config(size, train=None, **more):
    base = size if "/" in size else f"google/gemma-4-{size}-it"
    return RunConfig(model={"base": base}, train=train or {}, **more)


def _applied(config, change):
    """The configuration after the change, made as `--set` would make it."""
    body = config.model_dump(by_alias=True)
    for item in change.sets:
        key, _, value = item.partition("=")
        *sections, name = key.split(".")
        place = body
        for section in sections:
            place = place[section]
        place[name] = json.loads(value) if value in ("null", "true", "false") or value.isdigit() else value
    return RunConfig.model_validate(body)


def test_31b_in_4bit_fits_an_a100_of_40_gib():
    made = plan(_config("31B", QLORA), "a100-40")
    assert made.fits == "yes"
    assert made.total / GIB == pytest.approx(22.8, abs=1)
    assert made.changes == ()
    assert "fits on A100 40 GB" in plan_lines(made)[0]


def test_towers_are_counted_where_rows_show_something(tmp_path):
    question = [{"type": "image_url", "image_url": {"url": "cat.png"}}, {"type": "text", "text": "What is this?"}]
    rows = {
        "seen": question,
        "heard": [{"type": "input_audio", "input_audio": {"data": "a.wav"}}],
        "read": "What is this?",
    }
    made = {}
    for name, content in rows.items():
        path = tmp_path / f"{name}.jsonl"
        talk = [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]
        path.write_text(json.dumps({"messages": talk}) + "\n", encoding="utf-8")
        made[name] = plan(_config("E2B", data={"path": str(path)}), "l4")
    column = tmp_path / "column.jsonl"
    column.write_text(json.dumps({"prompt": "<image> What?", "completion": "A cat.", "images": ["cat.png"]}) + "\n")
    made["column"] = plan(_config("E2B", data={"path": str(column)}), "l4")
    counts = family.SIZES["E2B"].shape.counts()
    for name, one in made.items():
        towers = sum(part.bytes for part in one.parts if part.name == "vision and audio towers")
        assert towers == (0 if name == "read" else 2 * (counts.vision + counts.audio))
        assert any("towers are loaded" in note for note in one.notes) == (name != "read")


def test_26b_a4b_fits_an_rtx_4090_because_its_experts_are_4bit_too():
    made = plan(_config("26B-A4B", QLORA), "rtx-4090")
    assert made.fits == "yes"
    assert next(part for part in made.parts if part.name == "experts").bytes / GIB == pytest.approx(11.0, abs=0.1)


def test_e2b_on_a_t4_fits_and_says_that_bf16_is_emulated():
    made = plan(_config("E2B"), "t4")
    assert made.fits == "yes"
    assert any("no bfloat16" in note for note in made.notes)
    assert made.speed.factor > plan(_config("E2B"), "l4").speed.factor


@pytest.mark.parametrize("size", family.SIZES)
@pytest.mark.parametrize("device", ["t4", "rtx-4090", "a100-40", "h100"])
@pytest.mark.parametrize("weights", ["bf16", "nf4", "fp32"])
def test_every_change_offered_really_fits(size, device, weights):
    config = _config(size, {**PADDED, "weights": weights, "micro_batch": 4, "max_length": 4096})
    made = plan(config, device)
    assert (made.fits == "yes") == (not made.changes)
    for change in made.changes:
        after = plan(_applied(config, change), change.device or device)
        assert after.fits == "yes"
        assert after.total == pytest.approx(change.after.total)
    if made.fits != "yes" and size != "31B":
        assert made.changes


def test_the_one_change_is_the_cheapest_of_those_that_suffice():
    def first(train, device, size="E4B"):
        return plan(_config(size, train), device).changes[0].sets

    assert first({**PADDED, "micro_batch": 1}, "rtx-4090") == ("train.checkpointing=auto",)
    recomputed = {**PADDED, "checkpointing": "all"}
    assert first({**recomputed, "micro_batch": 16, "batch": 16}, "rtx-4090") == ("train.micro_batch=8",)
    assert first({"checkpointing": "all"}, "rtx-4090", "12B") == ("train.weights=nf4",)
    assert first({"micro_tokens": 65_536}, "rtx-4090", "E2B") == ("train.micro_tokens=null",)


def test_when_nothing_helps_it_says_so():
    # 64 MiB adapters on every linear at rank 4096 outgrow any single GPU.
    made = plan(_config("31B", {"lora": {"rank": 16_384}}), "t4")
    assert made.fits == "no"
    assert [change for change in made.changes if change.device or "model.base" not in change.sets[0]] == []
    if not made.changes:
        assert any("nothing tried here is enough" in line for line in plan_lines(made))


def test_a_faster_way_is_offered_only_if_it_fits_and_is_faster():
    config = _config("31B", {**QLORA, "micro_tokens": None, "checkpointing": "all"})
    made = plan(config, "h200")
    after = plan(_applied(config, made.faster), "h200")
    assert after.fits == "yes"
    assert after.speed.tokens_per_second > 1.2 * made.speed.tokens_per_second


def test_uncertainty_decides_between_yes_and_tight():
    verdicts = []
    for length in range(1024, 16_385, 512):
        made = plan(
            _config("E4B", {"checkpointing": "all", "micro_tokens": 2 * length, "max_length": length}), "rtx-4090"
        )
        room = made.device.memory * GIB
        assert (made.fits == "yes") == (made.total + made.spread <= room)
        assert (made.fits == "no") == (made.total > room)
        verdicts.append(made.fits)
    assert verdicts == sorted(verdicts, key=["yes", "tight", "no"].index)
    assert set(verdicts) == {"yes", "tight", "no"}


def test_time_and_cost_follow_the_data(tmp_path):
    rows = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "word " * 80}]}
    rows.write_text((json.dumps(row) + "\n") * 5000, encoding="utf-8")
    config = _config("E2B", {"epochs": 2.0}, data={"path": str(rows), "valid_share": 0.1})
    made = plan(config, "a100-40")
    assert made.rows.count == pytest.approx(4500, rel=0.01)
    assert made.rows.mean == pytest.approx(1400 / 4 + 10, rel=0.01)
    assert made.tokens == pytest.approx(2 * made.rows.count * made.rows.mean)
    assert made.dollars == pytest.approx(made.seconds / 3600 * 1.99)
    assert not made.per_million
    steps = plan(_config("E2B", {"max_steps": 10, "batch": 16}, data={"path": str(rows)}), "a100-40")
    assert steps.tokens == pytest.approx(160 * steps.rows.mean)
    nothing = plan(_config("E2B"), "a100-40")
    assert nothing.per_million
    assert any("per million tokens" in line for line in plan_lines(nothing))


def test_a_prepared_report_is_believed_over_the_file(tmp_path):
    report = tmp_path / "runs" / "mine" / "prepare" / "report.json"
    report.parent.mkdir(parents=True)
    row = {"p50": 110, "p95": 260, "max": 400}
    tokens = {"train": {"count": 1000, "tokens": 120_000, "tokens_with_loss": 24_000, "row": row}}
    body = {
        "rows": {"train": 1000, "valid": 10},
        "tokens": tokens,
        "examples": {"off": 1000, "on": 2500, "mixed": 1000},
    }
    report.write_text(json.dumps(body), encoding="utf-8")
    made = plan(_config("E2B", name="mine"), "l4")
    assert (made.rows.count, made.rows.longest, made.rows.scored) == (1000, 400, 0.2)
    assert made.rows.mean == pytest.approx(120, rel=0.01)
    # Where one example can't hold all answers of a row, training reads it as often as it has to.
    thinks = plan(_config("E2B", {"thinking": "on"}, name="mine"), "l4").rows
    assert (thinks.count, thinks.source) == (2500, "1,000 prepared rows, 2,500 examples of 120 tokens on average")
    # No row is longer than 400 tokens, so no memory is planned for 2,048.
    padded = {"packing": False}
    longest = (
        plan(_config("E2B", padded, name="mine"), "l4").total,
        plan(_config("E2B", padded, name="other"), "l4").total,
    )
    assert longest[0] < longest[1]
    report.write_text("{", encoding="utf-8")
    assert plan(_config("E2B", name="mine"), "l4").rows.count is None


def test_a_local_folder_is_read_through_its_config(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    text = nano.text_config() | {"model_type": "gemma4_text"}
    (folder / "config.json").write_text(json.dumps(text), encoding="utf-8")
    made = plan(RunConfig(model={"base": str(folder)}), "cpu")
    assert made.fits == "yes"
    assert made.size is None
    assert made.total < 3 * GIB
    published = family.CONFIGS["12B"]
    (folder / "config.json").write_text(json.dumps(published), encoding="utf-8")
    assert plan(RunConfig(model={"base": str(folder)}), "h200").size == "12B"


def test_wrong_input_is_told(tmp_path):
    with pytest.raises(ConfigError, match="did you mean google/gemma-4-E2B-it"):
        plan(RunConfig(model={"base": "google/gemma-4-E2B-IT"}), "l4")
    with pytest.raises(ConfigError, match="unknown device"):
        plan(_config("E2B"), "l5")
    with pytest.raises(ModelError, match=r"no readable config\.json"):
        plan(RunConfig(model={"base": str(tmp_path)}), "l4")
    with pytest.raises(ConfigError, match="matches no linear"):
        plan(_config("E2B", {"lora": {"targets": "nothing"}}), "l4")


def test_json_holds_the_whole_answer():
    body = json.loads(json.dumps(plan(_config("31B"), "rtx-4090").to_json()))
    assert body["fits"] == "no"
    assert sum(part["bytes"] for part in body["parts"]) == pytest.approx(body["total_bytes"], abs=100)
    assert body["changes"][0]["set"] == ["train.weights=nf4"]
    assert body["changes"][0]["seconds"] > 0
    assert body["price_source"]


def test_lines_stay_narrow_and_bars_in_proportion():
    made = plan(_config("26B-A4B", QLORA), "rtx-4090")
    lines = plan_lines(made)
    assert max(map(len, lines)) <= 110
    bars = {part.name: next(line for line in lines if part.name in line).count("█") for part in made.parts}
    assert bars["experts"] > 10 * max(1, bars["attention and MLP"])


def test_answers_in_time_and_without_torch():
    code = (
        "import sys, time\n"
        "from gemma_ops.config import RunConfig\n"
        "from gemma_ops.planning import plan, plan_lines\n"
        "begun = time.process_time()\n"
        "plan_lines(plan(RunConfig(model={'base': 'google/gemma-4-31B-it'}), 'rtx-4090'))\n"
        "taken = time.process_time() - begun\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} {taken}' if heavy or taken > 1 else 0)"
    )
    done = patience.run([sys.executable, "-c", code], seconds=10)  # under 2 s; this guards against a slow import
    assert done.returncode == 0, done.stderr


def test_tokens_are_counted_after_the_template_where_the_tokenizer_is_here(cli, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where does ferry {n} land?"},
                {"role": "assistant", "content": f"Pier {n}"},
            ]
        }
        for n in range(300)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sets = ["--set", "data.path=rows.jsonl", "--set", "data.near_duplicates=null"]
    planned = json.loads(cli("plan", "quickstart", "--device", "cpu", "--json", *sets).stdout)["data"]
    checked = json.loads(cli("data", "check", "quickstart", "--json", *sets).stdout)
    assert planned["tokens_per_row"] == pytest.approx(checked["tokens"]["tokens"] / checked["examples"], rel=1e-3)
    assert planned["loss_share"] == pytest.approx(
        checked["tokens"]["tokens_with_loss"] / checked["tokens"]["tokens"], rel=1e-3
    )
    assert planned["source"].startswith("300 rows counted")
    assert planned["longest_row"] == checked["tokens"]["row"]["max"]
