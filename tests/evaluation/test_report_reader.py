"""What a reader of an evaluation must find without asking: what it is about, who is who in the pictures, every gated
figure, and the load that latencies were measured under."""

import json
import os
import random
import re
import shutil

import pytest

from gemma_ops import __version__
from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.evaluation import evaluate_step, provenance, regrade, scatter, summary_lines
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import EnginePace
from gemma_ops.tasks import conditions, stored_answers
from gemma_ops.tasks.conditions import ConditionsFile
from gemma_ops.verdicts import Verdict
from gemma_ops.words import palette
from gemma_ops.words.figures import chip, colour, short_name
from gemma_ops.words.markup import escape
from tests.evaluation.test_evaluate_step import SUPERIOR, Echo, make_task

SERVICES = ("gemini:gemini-3.8-flash@low", "gemini:gemini-3.5-flash-lite@low", "openai:http://127.0.0.1:9/v1#qwen3")
NAMES = ("base", "tuned", "bf16", "q8_0", "q4_0", "/models/gemma-3", "/models/other", *SERVICES)
GATES = (
    SUPERIOR | {"task": "desk"},
    {"metric": "exact_match", "task": "bank", "target": "tuned", "test": "noninferior", "versus": SERVICES[0],
        "margin": 0.05},
    {"metric": "label.f1_macro", "task": "desk", "target": "q8_0", "test": "at_least", "margin": 0.4},
    {"metric": "chrf", "task": "desk", "target": "q4_0", "test": "superior", "versus": "base", "margin": 0.01},
    {"metric": "usd_per_1k", "task": "bank", "target": "q4_0", "test": "at_most", "margin": 0.2, "most": 1.0},
    {"metric": "seconds_p95", "task": "desk", "target": "tuned", "test": "at_most", "margin": 0.9},
    {"metric": "judge.win_rate", "task": "desk", "target": "tuned", "test": "superior", "versus": "base",
        "margin": 0.0},
)  # fmt: skip


def stand_in(name, skill):
    found = Echo(name, skill)
    found.pace = EnginePace("CPU", 2) if name not in SERVICES else EnginePace(at_once=6)
    return found


def go(out, folders, targets, machine=None, *, base=None, gates=()):
    out.mkdir(parents=True, exist_ok=True)
    judge = {"judges": ["openai:http://127.0.0.1:9/v1#judge"]} if gates else {}
    config = EvaluateConfig(targets=tuple(target.name for target in targets), gates=gates, judge=judge)
    tasks = evaluate_step.load_checked(config, tuple(folders), None)
    machine = machine or MachineConfig(dollars_per_hour=3.6)
    facts = provenance.collect_provenance(targets, machine, RunModels(base=base), data=None)
    evaluate_step.run_evaluation(out, config, tasks, targets, facts, batch=8)
    return json.loads((out / "verdict.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two tasks, ten targets and gates of every kind; the run is called `desk-run`."""
    folder = tmp_path_factory.mktemp("reader")
    metrics = ["exact_match", {"id": "choice_accuracy", "name": "label", "choices": [f"a{i}" for i in range(40)]}]
    metrics.append("chrf")
    tasks = [make_task(folder / name, 40, metrics=metrics, slices=["half"]) for name in ("desk", "bank")]
    (folder / "base").mkdir()
    (folder / "base" / "model.json").write_text(
        json.dumps({"id": "google/gemma-4-E4B", "size": "E4B", "revision": "f00d"})
    )
    out = folder / "desk-run" / "evaluate.partial"
    targets = [stand_in(name, 5 + 3 * index) for index, name in enumerate(NAMES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "_now", lambda: "2026-02-03T04:05:06Z")
        patch.setattr(os, "getloadavg", lambda: (1.75, 9.0, 9.0))
        patch.setattr(os, "cpu_count", lambda: 4)
        verdict = go(out, tasks, targets, base=folder / "base", gates=GATES)
    page = (out / "report.html").read_text(encoding="utf-8")
    return {"out": out, "tasks": tasks, "verdict": verdict, "page": page, "summary": (out / "summary.md").read_text()}


def text_of(page):
    return re.sub(r"<[^>]+>", " ", page.partition("</style>")[2])


def test_the_page_starts_with_what_it_is_about(made):
    head = text_of(made["page"].partition('<section class="card verdict')[0])
    facts = ("desk-run", "google/gemma-4-E4B", "size E4B", "f00d", "2026-02-03 04:05 UTC", f"gemma-ops {__version__}")
    for part in (*facts, "desk, bank", *(escape(name) for name in NAMES)):
        assert part in head, part
    title = re.search("<title>(.*)</title>", made["page"]).group(1)
    for part in ("desk-run", "google/gemma-4-E4B", "desk, bank", "2026-02-03"):
        assert part in title, part
    assert all(part in made["summary"].partition("| ---")[0] for part in facts)


def test_what_nothing_recorded_is_said_to_be_unknown(tmp_path):
    out = tmp_path / "evaluate"
    go(out, [make_task(tmp_path / "t")], [Echo("base", 9)])
    (out / conditions.FILE).unlink()
    go(out, [tmp_path / "t"], [again := Echo("base", 9)])
    assert again.asked == []  # answers without conditions stay valid
    head = text_of((out / "report.html").read_text().partition('<section class="card verdict')[0])
    assert re.search(r"Tuned model\s+not recorded", head)
    assert re.search(r"Evaluated\s+not recorded", head)


def test_grading_again_keeps_the_date_and_the_page(made, tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "_now", lambda: "2031-01-01T00:00:00Z")
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 7.0, 7.0))
    gates = [gate for gate in GATES if not gate["metric"].startswith("judge.")]
    config = EvaluateConfig(targets=NAMES, gates=gates)
    pages = []
    for name in ("one", "two"):
        out = tmp_path / name / "evaluate"
        out.mkdir(parents=True)
        regrade(out, config, MachineConfig(), answers=made["out"], tasks=tuple(made["tasks"]))
        pages.append((out / "report.html").read_bytes())
    assert pages[0] == pages[1]
    assert b"2026-02-03 04:05 UTC" in pages[0]
    assert b"desk-run" in pages[0]
    assert b"load average 1.75" in pages[0]


def test_every_target_has_a_colour_and_a_mark_of_its_own():
    names = [*NAMES, *(f"gemini:model-{index}" for index in range(6))]
    colours = palette.palette(names)
    assert len(colours) == len(names)
    for index in (0, 1):
        assert len({pair[index] for pair in colours.values()}) == len(names)
    light = [palette._rgb(pair[0]) for pair in colours.values()]
    assert min(map(palette.contrast, light)) >= 3
    assert min(palette.contrast(palette._rgb(pair[1]), palette._rgb("#1b2027")) for pair in colours.values()) >= 3
    # For normal sight and for both kinds of red-green blindness.
    assert min(palette.distance(one, other) for at, one in enumerate(light) for other in light[:at]) > 0.05
    assert (
        palette.distance(palette._rgb("#c0332b"), palette._rgb("#6b7a1a")) < 0.05
    )  # red and green: apart in hue alone
    shapes = re.findall(r'<path id="mark-([\w-]+)" d="([^"]+)"', palette.marks(NAMES))
    assert len({shape for _, shape in shapes[:8]}) == 8
    assert palette.palette(NAMES[:5]) == {kind: colours[kind] for kind in palette.palette(NAMES[:5])}


def test_a_target_looks_the_same_in_every_picture(made):
    css, _, body = made["page"].partition("</style>")
    kinds = {colour(name) for name in NAMES}
    assert len(kinds) == len(NAMES)
    for kind in kinds:
        assert len(re.findall(rf"^\.{kind} \{{ --own: #\w+; \}}$", css, re.MULTILINE)) == 2  # light and dark
        assert body.count(f'id="mark-{kind}"') == 1
    assert {*re.findall(r'class="dot ([\w-]+)"', body)} <= kinds
    assert {*re.findall(r'href="#mark-([\w-]+)"', body)} <= kinds
    assert all(f'href="#mark-{kind}"' in body for kind in kinds)
    names = re.findall(r'<text class="label ([\w-]+)"[^>]*>([^<]+)</text>', body)
    assert {kind for kind, _ in names} == kinds


def test_pictures_can_be_read_without_a_pointer(made):
    body = made["page"].partition("</style>")[2]
    drawn = re.findall(r'<svg class="plot[^>]*>.*?</svg>', body, re.DOTALL)
    scales = [one for one in drawn if 'class="tick"' in one]
    assert len(scales) > 8
    assert all(re.search(r'class="axis-title"[^>]*>[^<]*\w', one) for one in scales)
    points = [one for one in drawn if 'class="label' in one]
    assert len(points) == 4  # dollars and seconds, of two tasks
    for one in points:
        labels = re.findall(r'<text class="label [\w-]+"[^>]*>([^<]+)</text>', one)
        assert len(labels) == one.count('class="dot ') == len(NAMES)
        assert "<title>" not in one
    assert any("dollars per 1,000 answers" in one and re.search(r">\$[\d.]+<", one) for one in points)
    assert any("seconds to the whole answer, p50" in one and re.search(r">[\d.]+ s<", one) for one in points)
    for result in made["verdict"]["results"]:
        figure = result["metrics"]["exact_match"]
        assert f"{figure['low']:.3f} to {figure['high']:.3f}" in body
    for gate in made["verdict"]["gates"]:
        if gate["bound"] is not None and gate["metric"] == "exact_match":
            assert f"[{gate['bound']:+.3f}, {gate['upper']:+.3f}]".replace("-", "−") in body


@pytest.mark.parametrize("seed", range(12))
def test_no_name_lies_on_another_name_or_point(seed):
    chance = random.Random(seed)
    count = 3 + seed % 10
    names = ["n" * chance.randint(4, 20) for _ in range(count)]
    shares = [chance.choice([0.1, 0.5, 0.9, chance.random()]) for _ in range(count)]
    heights = [chance.choice([40.0, 44.0, chance.uniform(30, 480)]) for _ in range(count)]
    placed = scatter.place_names(names, shares, heights, 500.0)
    assert None not in placed
    boxes = [one.box for one in placed]
    assert not [(a, b) for at, a in enumerate(boxes) for b in boxes[:at] if a.meets(b)]
    assert all(box.left >= 0 and box.right <= 300 and box.bottom <= 502 for box in boxes)
    for at, box in enumerate(boxes):
        x = 3 * scatter._across(shares[at])
        others = [
            (3 * scatter._across(share), y) for share, y in zip(shares, heights, strict=True) if share != shares[at]
        ]
        assert box.left - 12 <= x <= box.right + 12  # it stands at its own point
        assert not [1 for px, py in others if box.left < px < box.right and box.top < py < box.bottom]


def test_the_summary_shows_every_gated_figure(made):
    rows = [line for line in made["summary"].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows]
    table = [line for line in cells if len(line) == 10][2:]
    verdict = made["verdict"]
    assert len(table) == len(GATES)
    known = {(one["task"], one["target"]): one for one in verdict["results"]}
    for gate, line in zip(verdict["gates"], table, strict=True):
        assert gate["outcome"].replace("_", " ") in line[0]
        assert line[1:4] == [f"`{gate['task']}`", f"`{gate['target']}`", f"`{gate['metric']}`"]
        if gate["versus"]:
            assert f"`{gate['versus']}`" in line[6]
        if gate["versus"] and not gate["metric"].startswith("judge."):
            assert f"{known[gate['task'], gate['versus']]['metrics'][gate['metric']]['value']:.3f}" in line[6]
        if gate["metric"] in known["desk", "tuned"]["metrics"]:
            shown = f"{gate['value']:+.3f}" if gate["versus"] else f"{gate['value']:.3f}"
            assert line[4].startswith(shown.replace("-", "−"))
            assert f"`{gate['metric']}`" in made["summary"]
    assert table[0][5] == "> +0.300"
    assert table[1][5] == "> −0.050"
    assert table[2][5] == "≥ 0.400"
    assert table[4][4].startswith("$0.020 [")
    assert table[4][5] == "≤ $0.20"
    assert re.search(r"^100\.0% \[\d.*\] in time, p95 80 ms$", table[5][4])
    assert table[5][5] == "≥ 95% within 0.90 s"
    assert table[6][0].endswith("report only")
    assert "label.f1_macro" in made["summary"].partition("### desk")[2].partition("### bank")[0]
    assert "chrf" in made["summary"].partition("### desk")[2].partition("### bank")[0]


def test_latency_says_its_load_wherever_it_stands(made):
    local = "8 at once, CPU (2 of 4 threads), load average 1.75 on 4 cores before"
    remote = "6 requests at once, a server's device, not known, load average 1.75 on 4 cores before"
    for name in NAMES:
        load = remote if name in SERVICES else local
        lines = [line for line in made["summary"].splitlines() if line.startswith(f"| `{name}` |")]
        assert len([line for line in lines if f"| {load} |" in line]) == 2, name  # one a task
        rows = re.findall(rf"<tr><th scope=row>{re.escape(chip(name))}</th>.*?</tr>", made["page"])
        timed = [row for row in rows if "p95 " in row or "e-stop" in row]
        assert len(timed) == 4
        assert all(escape(load) in row for row in timed)
    console = summary_lines(Verdict.parse(made["verdict"]))
    for at, line in enumerate(console):
        if "(p50 / p95)" in line or "answers within" in line:
            assert "timed with " in console[at + 1], line
    assert any("tuned answers within 0.9 s" in line for line in console)
    assert made["page"].count(f"timed with {local}") == 1  # of the gate on seconds


def test_answers_without_conditions_say_so(tmp_path):
    out = tmp_path / "evaluate"
    gates = [{"metric": "seconds_p95", "target": "base", "test": "at_most", "margin": 0.9}]
    go(out, [make_task(tmp_path / "t")], [Echo("base", 9)], gates=gates)
    keys = [json.loads(line)["key"] for line in (out / stored_answers.FILE).read_text().splitlines()]
    (out / conditions.FILE).unlink()
    verdict = go(out, [tmp_path / "t"], [again := Echo("base", 9)], gates=gates)
    assert again.asked == []
    assert keys == [json.loads(line)["key"] for line in (out / stored_answers.FILE).read_text().splitlines()]
    assert "load not recorded" in (out / "summary.md").read_text()
    assert "load not recorded" in (out / "report.html").read_text()
    assert "load not recorded" in "\n".join(summary_lines(Verdict.parse(verdict)))
    # One batch is asked for now: the rest stays unknown, and that is said.
    lines = (out / stored_answers.FILE).read_text().splitlines(keepends=True)
    (out / stored_answers.FILE).write_text("".join(lines[1:]))
    go(out, [tmp_path / "t"], [Echo("base", 9)], gates=gates)
    assert "recorded for a part of the answers" in (out / "report.html").read_text()


def test_attempts_under_two_loads_tell_both(tmp_path, monkeypatch):
    out, task = tmp_path / "evaluate", make_task(tmp_path / "t")
    monkeypatch.setattr(os, "getloadavg", lambda: (0.25, 0, 0))
    with pytest.raises(RuntimeError):
        go(out, [task], [Echo("base", 9, explode=2)])
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 0, 0))
    go(out, [task], [Echo("base", 9)])
    assert "load average 0.25 to 3.50" in (out / "report.html").read_text()
    assert [one.rows for one in ConditionsFile(out / conditions.FILE).known.values()] == [40, 24]


def test_kept_answers_keep_their_conditions(tmp_path):
    run = tmp_path / "run"
    go(run / "evaluate", [make_task(tmp_path / "t")], [Echo("base", 9)])
    before = (run / "evaluate" / conditions.FILE).read_bytes()
    stored_answers.keep_answers(run)
    shutil.rmtree(run / "evaluate")
    (run / "evaluate.partial").mkdir()
    stored_answers.take_kept_answers(run / "evaluate.partial")
    go(run / "evaluate.partial", [tmp_path / "t"], [again := Echo("base", 9)])
    assert again.asked == []
    assert (run / "evaluate.partial" / conditions.FILE).read_bytes() == before


def test_short_names_are_told_in_full_once(made):
    head = made["page"].partition('<section class="card verdict')[0]
    for name in NAMES:
        if short_name(name) != name:
            assert f'<span class="ci whole">{escape(name)}</span>' in head
