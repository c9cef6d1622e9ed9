"""One text under two classes: found whatever it is dressed in and wherever it stands, and no alarm where texts are only
alike."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest

from gemma_ops.config import DataConfig, EvaluateConfig, MachineConfig, SynthConfig
from gemma_ops.errors import BoundaryError
from gemma_ops.evaluation import evaluate_step
from gemma_ops.judging.judge_material import JudgedPair
from gemma_ops.judging.tightening import private_texts, tighten_pairs, tighten_tasks
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.prepare import prepare
from gemma_ops.privacy.canonical import canonical_text, letters, without_headings
from gemma_ops.privacy.text_copies import FILE, PrivateTexts
from gemma_ops.synth import plan_requests
from gemma_ops.tasks.task import load_all
from tests.helpers.evaluations import Echo, make_task

WORDS = [
    "pump",
    "valve",
    "gasket",
    "torque",
    "façade",
    "naïve",
    "Größe",
    "élan",
    "rotor",
    "shim",
    "bolt",
    "flange",
    "grease",
    "bearing",
    "coupling",
    "sensor",
]


def sentence(draw, count):
    return " ".join(f"{draw.choice(WORDS)}{draw.randrange(900)}" for _ in range(count)).capitalize() + "."


DRESSED = {
    "decomposed": lambda text, _: unicodedata.normalize("NFD", text),
    "wide": lambda text, _: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "shouted": lambda text, _: text.upper(),
    "wrapped": lambda text, _: "\r\n\u00a0 ".join(text.split()),
    "markdown": lambda text, _: "> **" + text.replace(" ", "** _", 1) + "_\n",
    "html": lambda text, _: "<p>" + text.replace(" ", "</p>\n<p class='x'>", 1).replace("ö", "&ouml;") + "</p>",
    "escaped": lambda text, _: json.dumps(text.replace(" ", "\n"))[1:-1],
    "embedded": lambda text, draw: f"{sentence(draw, 40)}\n\n{text}\n\n{sentence(draw, 40)}",
}


@pytest.mark.parametrize("dress", DRESSED)
def test_a_private_text_is_found_in_every_dress(dress):
    draw = random.Random(11)
    texts = [sentence(draw, draw.randrange(4, 60)) for _ in range(60)]
    index = PrivateTexts()
    for number, text in enumerate(texts):
        index.add(text, "paid" if number % 3 else "local_only", f"t{number}")
    for number, text in enumerate(texts):
        found = index.strictest(DRESSED[dress](text, draw), "any")
        assert found is not None, text
        assert (found.name, found.privacy) == (f"t{number}", "paid" if number % 3 else "local_only")
    assert not any(index.strictest(DRESSED[dress](sentence(draw, 50), draw), "any") for _ in range(60))


def test_the_strictest_of_several_holds_and_nothing_is_made_laxer():
    index = PrivateTexts()
    index.add("The vault opens on Thursdays at nine.", "paid", "one")
    index.add("the vault OPENS on thursdays at nine", "local_only", "two")
    index.add("The boiler room has a second door.", "paid", "three")
    both = "Note: the boiler room has a second door, and the vault opens on Thursdays at nine!"
    assert index.strictest(both, "any").name == "two"
    assert index.strictest("The boiler room has a second door.", "paid") is None
    assert index.strictest("The boiler room has a second door.", "any").privacy == "paid"
    assert index.strictest(both, "local_only") is None


def test_an_instruction_around_different_questions_is_no_copy():
    around = (
        "You are a clerk of our works. Sort this message into one of the desks of the house and answer with its name "
        "only:\n"
    )
    draw = random.Random(3)
    index = PrivateTexts()
    for number in range(40):
        row = {
            "messages": [
                {"role": "system", "content": around},
                {"role": "user", "content": around + sentence(draw, 5)},
                {"role": "assistant", "content": "This message belongs to the desk for returned parts."},
            ]
        }
        index.add_row(row, f"r{number}")
    assert not index.strictest(around + sentence(draw, 5), "any")
    assert not index.strictest(around, "any")
    # An answer that many rows give says nothing about whose it is; one that a single row gives does.
    assert not index.strictest("This message belongs to the desk for returned parts.", "any")
    said = sentence(draw, 9)
    turns = [{"role": "user", "content": "Which desk gets it?"}, {"role": "assistant", "content": said}]
    index.add_row({"messages": turns}, "x")
    assert index.strictest(f"I heard this: {said}", "any").name == "x"


def test_short_texts_count_only_as_a_whole_and_dense_scripts_say_more_with_less():
    index = PrivateTexts()
    index.add("Gate 7 code?", "local_only", "short")
    assert index.strictest(" gate 7 CODE ", "any")
    assert not index.strictest("Please ask about the gate 7 code, then go on.", "any")
    assert letters(canonical_text("主阀门的开启压力是九")) == 20
    index.add("主阀门的开启压力是九", "local_only", "dense")
    assert index.strictest("手册第三章：主阀门的 开启压力是九 巴。", "any")
    index.add("Hi!", "local_only", "greeting")
    assert not index.strictest("hi", "any")


def test_an_index_can_be_kept_and_holds_no_text(tmp_path):
    index = PrivateTexts()
    index.add("The archive key lies under the third stone.", "local_only", "letter.md")
    index.save(tmp_path / FILE)
    kept = (tmp_path / FILE).read_text()
    assert "archive" not in kept
    again = PrivateTexts()
    again.load(tmp_path / FILE)
    again.load(tmp_path / "none")
    assert again.strictest("x: the archive key lies under the third stone", "any").name == "letter.md"


def test_headings_go_with_their_lines():
    assert canonical_text(without_headings("# Title\nbody one\n## Next\nbody two", (0, 17))) == "bodyonebodytwo"
    assert without_headings("A title\nthe body", ()) == "the body"
    assert without_headings("only one line", ()) == "only one line"


def gathered(folder, settings=None):
    settings = settings or SynthConfig(documents="docs", privacy="any", count={"document_qa": 50})
    pool = plan_requests.gather(settings, documents=folder, seeds=None, tools=None)
    return {section.document.name: section.document for section in pool.sections}


def test_documents_take_the_class_of_what_they_hold_and_of_what_they_are_a_piece_of(tmp_path):
    draw = random.Random(5)
    secret, common, other = sentence(draw, 60), sentence(draw, 30), sentence(draw, 40)
    files = {
        "secret.md": f"---\nprivacy: local_only\n---\n# The long heading of a private paper, "
        f"{sentence(draw, 9)}\n\n{secret}\n",
        "bare.md": secret + "\n",
        "retitled.md": f"# Another title\n\n{secret.upper()}\n\n## After\n\n{other}\n",
        "page.html": f"<html><body><h1>Web</h1><p>{secret}</p></body></html>",
        "piece.txt": " ".join(secret.split()[10:40]),
        "free.md": f"# Free\n\n{other}\n\n{sentence(draw, 60)}\n",
        "legal.txt": common,
        **{
            f"contract{n}.md": f"---\nprivacy: local_only\n---\n{sentence(draw, 40)}\n\n{common}\n\n"
            f"{sentence(draw, 40)}\n"
            for n in range(3)
        },
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = gathered(tmp_path)
    classes = {name: document.privacy for name, document in found.items()}
    held = {
        "secret.md",
        "bare.md",
        "retitled.md",
        "page.html",
        "piece.txt",
        "contract0.md",
        "contract1.md",
        "contract2.md",
    }
    assert {name for name, kind in classes.items() if kind == "local_only"} == held & classes.keys()
    assert {name for name, kind in classes.items() if kind == "any"} == {"free.md", "legal.txt"}
    assert found["retitled.md"].because == "secret.md"
    settings = SynthConfig(
        teacher="gemini:gemini-3.8-flash", documents="docs", privacy="any", count={"document_qa": 50}
    )
    items = plan_requests.first(settings, plan_requests.gather(settings, documents=tmp_path, seeds=None, tools=None))
    retitled = [item for item in items if item.material.name.startswith(("retitled", "free"))]
    with pytest.raises(BoundaryError, match=r"which holds text of secret\.md"):
        plan_requests.visible(retitled, frozenset({"any"}), settings)


def test_questions_take_the_class_of_rows_documents_and_other_tasks(tmp_path):
    draw = random.Random(8)
    row, question, document = sentence(draw, 12), sentence(draw, 12), sentence(draw, 25)
    run = tmp_path / "runs" / "r"
    (run / "synthesize").mkdir(parents=True)
    index = PrivateTexts()
    index.add(document, "local_only", "handbook.md")
    index.save(run / "synthesize" / FILE)
    rows = [{"messages": [{"role": "user", "content": row if n == 4 else sentence(draw, 9)},
                {"role": "assistant", "content": f"yes {n}"}]} for n in range(12)]  # fmt: skip
    rows[4]["privacy"] = "local_only"
    rows[9]["messages"][0]["content"] = f"Once more: {row}"  # of class any, and the same text
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    (run / "prepare").mkdir()
    prepare(
        run / "prepare", DataConfig(privacy="any", near_duplicates=None, valid_share=0.3), MachineConfig(),
        source=tmp_path / "rows.jsonl", model=local_base("nano"),
    )  # fmt: skip
    body = json.loads((run / "prepare" / "report.json").read_text())
    assert body["privacy"] == {"local_only": 2, "any": 10}
    assert body["copies"] == 1
    private = make_task(
        tmp_path / "private", rows=[{"id": "p", "prompt": question, "reference": "a0"}], privacy="local_only"
    )
    asked = [
        {"id": "row", "prompt": f"Answer: {row.upper()}", "reference": "a1"},
        {"id": "task", "prompt": question.replace(" ", "\n"), "reference": "a2"},
        {"id": "document", "prompt": f"{document}\nWhat follows from it?", "reference": "a3"},
        {"id": "free", "prompt": sentence(draw, 12), "reference": "a4"},
    ]
    public = make_task(tmp_path / "public", rows=asked, privacy="any")
    tasks = list(load_all((private, public), None))
    found = tighten_tasks(tasks, private_texts(run, tasks))[1]
    assert {line.id: line.privacy for line in found.rows} == {
        "row": "local_only", "task": "local_only", "document": "local_only", "free": "any",
    }  # fmt: skip
    assert found.held["document"] == "handbook.md"
    assert found.held["task"] == "task private (p)"
    out = run / "evaluate.partial"
    out.mkdir()
    service = Echo("gemini:made-up", 9)
    service.sees = frozenset({"any"})
    loaded = evaluate_step.load_checked(EvaluateConfig(), (private, public), None, run)
    with pytest.raises(BoundaryError, match=r"row row holds text of .*rows\.jsonl:5"):
        evaluate_step.run_evaluation(
            out, EvaluateConfig(targets=("x",)), loaded[1:], [service], {"targets": {}, "data": {}}, batch=4
        )
    assert not service.asked
    # What a judge is shown counts with the answers: a model may have said a private row by itself.
    said = JudgedPair("free", [{"role": "user", "content": "Well?"}], f"I was told: {row}", "nothing", privacy="any")
    clean = JudgedPair("clean", [{"role": "user", "content": "Well?"}], "I was told nothing", "nothing", privacy="any")
    judged = tighten_pairs([said, clean], private_texts(run, tasks))
    assert [pair.privacy for pair in judged] == ["local_only", "any"]
