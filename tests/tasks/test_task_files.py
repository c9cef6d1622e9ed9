"""Reading tasks: every shipped one can be won and lost, and each mistake in a hand-written one is told where it
stands."""

import json
from pathlib import Path

import pytest
import yaml

from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation import needs_source
from gemma_ops.tasks.question import fill_question
from gemma_ops.tasks.task import load_all, load_task, validate_tasks

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.parent for path in (ROOT / "eval").glob("*/task.yaml"))
BASIC = {
    "schema": "gemma-ops/eval-task@1",
    "name": "t",
    "version": 1,
    "data": {"path": "data.jsonl"},
    "metrics": ["exact_match"],
    "primary": "exact_match",
}


def write(folder, rows, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text(yaml.safe_dump({**BASIC, **changes}), encoding="utf-8")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_shipped_tasks_can_be_won_and_lost(folder, request):
    source = request.getfixturevalue("shared_data") / folder.name if needs_source(folder) else None
    task = load_task(folder, source)
    validate_tasks(task)
    assert task.name == folder.name
    assert all(row.reference is not None for row in task.rows)
    assert f"| `{task.name}` |" in (ROOT / "eval" / "README.md").read_text(encoding="utf-8")


def test_readme_names_every_metric_and_key():
    from gemma_ops.metrics import by_id
    from gemma_ops.tasks.task_file import TaskFile

    text = (ROOT / "eval" / "README.md").read_text(encoding="utf-8")
    keys = [field.alias or name for name, field in TaskFile.model_fields.items()]
    assert [name for name in [*by_id(), *keys] if f"`{name}`" not in text] == []


def test_every_mistake_is_told_with_its_line(tmp_path):
    (tmp_path / "task.yaml").write_text(
        "schema: gemma-ops/eval-task@1\nname: t\nversion: one\ndescripton: x\ndata: {path: d.jsonl, promt: y}\n"
        "metrics:\n  - exact_match\n  - {id: numeric, tolerence: 1}\n  - jsn_valid\nprimary: exact_match\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        load_task(tmp_path)
    text = caught.value.what
    assert "5 problems" in text
    for told in (
        "task.yaml:3: version: ",
        "task.yaml:4: descripton: unknown key, did you mean description?",
        "task.yaml:5: data.promt: unknown key, did you mean prompt?",
        "task.yaml:8: metrics.1.tolerence: unknown key, did you mean tolerance?",
        "task.yaml:9: metrics.2: no metric 'jsn_valid', did you mean json_valid?",
    ):
        assert told in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "task.yaml:1: not valid YAML"),
        ("name: a\nname: b\n", "task.yaml:2: name is given twice"),
        ("", "task.yaml has"),
        ("- a\n", "task.yaml:1: a configuration is a mapping"),
    ],
)
def test_broken_yaml(tmp_path, text, told):
    (tmp_path / "task.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        load_task(tmp_path)


def test_primary_must_be_measured(tmp_path):
    with pytest.raises(ConfigError, match="did you mean exact_match"):
        load_task(write(tmp_path, [], primary="exact_mach"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a", "reference": "b"', r"data.jsonl:2: not JSON"),
        ('["a"]', "data.jsonl:2: a row is a JSON object"),
        ('{"reference": "b"}', "data.jsonl:2: the row has no question"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "data.jsonl:2: the last message is from assistant"),
        ('{"prompt": "a", "reference": "b", "privacy": "secret"}', "data.jsonl:2: privacy is 'secret'"),
        ('{"id": "one", "prompt": "z", "reference": "b"}', "data.jsonl:2: the id 'one' was used before"),
        ('{"prompt": "z", "reference": "b", "choices": "yes"}', "data.jsonl:2: choices is not a list"),
    ],
)
def test_bad_rows(tmp_path, line, told):
    folder = write(tmp_path, [{"id": "one", "prompt": "q", "reference": "a"}])
    with (folder / "data.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=told):
        load_task(folder)


def test_empty_and_missing_data(tmp_path):
    folder = write(tmp_path, [])
    with pytest.raises(DataError, match="holds no rows"):
        load_task(folder)
    (folder / "data.jsonl").unlink()
    with pytest.raises(DataError, match=r"data\.jsonl does not exist"):
        load_task(folder)


def test_rows_get_ids_privacy_clusters_and_slices(tmp_path):
    rows = [
        {"prompt": "one two", "reference": {"k": "v"}, "doc": 7, "privacy": "any", "metadata": {"lang": "en"}},
        {"prompt": "one two", "reference": {"k": "w"}, "doc": 7, "privacy": "local_only", "lang": "de"},
        {"prompt": "a b c d e", "reference": {"k": "v"}, "doc": 8, "lang": "de"},
    ]
    slices = [
        "lang",
        {"name": "kind", "field": "reference.k"},
        {"name": "size", "field": "prompt_words", "buckets": [3, 5]},
    ]
    folder = write(tmp_path, rows, privacy="paid", cluster_by="doc", slices=slices)
    first, second, third = load_task(folder).rows
    assert second.id == f"{first.id}-2"  # the same question twice
    assert first.id != third.id
    assert [row.privacy for row in (first, second, third)] == [
        "paid",
        "local_only",
        "paid",
    ]  # rows may only be stricter
    assert [row.cluster for row in (first, second, third)] == ["7", "7", "8"]
    assert first.slices == {"lang": "en", "kind": "v", "size": "<3"}
    assert third.slices == {"lang": "de", "kind": "v", "size": "≥5"}


def test_a_missing_slice_field_is_told(tmp_path):
    with pytest.raises(DataError, match=r"data.jsonl:1: there is no lang to slice"):
        load_task(write(tmp_path, [{"prompt": "q", "reference": "a"}], slices=["lang"]))


def test_system_and_template(tmp_path):
    (tmp_path / "system.txt").write_text("Be brief.\n", encoding="utf-8")
    folder = write(
        tmp_path, [{"text": "hi {x}", "reference": "a"}], system="system.txt", prompt='Say {{"t": "{text}"}}'
    )
    (row,) = load_task(folder).rows
    assert row.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'Say {"t": "hi {x}"}'},
    )
    with pytest.raises(DataError, match="did you mean text"):
        fill_question("{texd}", {"text": "a"}, "here")
    with pytest.raises(ConfigError, match=r"system: .*nothing\.txt can't be read"):
        load_task(write(tmp_path / "b", [], system="nothing.txt"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_from_the_users_folder(tmp_path, kind):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"q": 'two, "quoted"', "label": "a"}, {"q": "three\nlines", "label": "b"}]
    folder = write(
        tmp_path / "task",
        [],
        data={"from_source": f"rows.{kind}", "prompt": "Q: {q}", "reference": "{label}"},
        slices=["label"],
        metrics=["choice_accuracy"],
        primary="choice_accuracy",
    )
    source = tmp_path / "mine"
    source.mkdir()
    file = source / f"rows.{kind}"
    if kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import csv

        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["q", "label"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    assert needs_source(folder)
    task = load_task(folder, source)
    assert [row.messages[0]["content"] for row in task.rows] == ['Q: two, "quoted"', "Q: three\nlines"]
    assert [row.slices["label"] for row in task.rows] == ["a", "b"]
    assert load_task(folder, source / "train.csv").digest == task.digest  # a file of that folder does as well
    with pytest.raises(DataError, match=r"no folder was given(.|\n)*--set data.path="):
        load_task(folder)
    file.unlink()
    with pytest.raises(DataError, match="does not exist"):
        load_task(folder, source)


def test_a_torn_csv_is_told(tmp_path):
    folder = write(tmp_path, [], data={"from_source": "r.csv", "prompt": "{q}", "reference": "{a}"})
    (tmp_path / "r.csv").write_text("q,a\n1,2\n3\n")
    with pytest.raises(DataError, match=r"r\.csv:3: the row does not have 2 columns"):
        load_task(folder, tmp_path)


def test_validation_refuses_tasks_that_measure_nothing(tmp_path):
    folder = write(tmp_path, [{"id": "x", "prompt": "q", "reference": ""}])
    with pytest.raises(DataError, match=r"row x: an empty answer scores 1\.000 in exact_match"):
        validate_tasks(load_task(folder))
    folder = write(
        tmp_path, [{"id": "x", "prompt": "q", "reference": "not json"}], metrics=["json_valid"], primary="json_valid"
    )
    with pytest.raises(DataError, match=r"row x: its own reference scores 0\.000 in json_valid"):
        validate_tasks(load_task(folder))


def test_digest_changes_with_anything_that_decides(tmp_path):
    (tmp_path / "s.txt").write_text("a")
    folder = write(tmp_path, [{"prompt": "q", "reference": "a"}], system="s.txt")
    before = load_task(folder).digest
    (tmp_path / "s.txt").write_text("b")
    changed = load_task(folder).digest
    write(tmp_path, [{"prompt": "q", "reference": "c"}], system="s.txt")
    assert len({before, changed, load_task(folder).digest}) == 3


def test_the_first_rows_by_hash_do_not_depend_on_order(tmp_path):
    rows = [{"id": f"r{index}", "prompt": "q", "reference": "a"} for index in range(50)]
    one = load_task(write(tmp_path / "a", rows)).first(10)
    two = load_task(write(tmp_path / "b", rows[::-1])).first(10)
    assert {row.id for row in one.rows} == {row.id for row in two.rows}
    assert (len(one.rows), one.total) == (10, 50)


def test_two_tasks_of_one_name_are_refused(tmp_path):
    rows = [{"prompt": "q", "reference": "a"}]
    with pytest.raises(ConfigError, match="both call their task t"):
        list(load_all((write(tmp_path / "a", rows), write(tmp_path / "b", rows)), None))
