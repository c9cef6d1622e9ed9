"""The verbs `task export` and `task import` as far as they need neither program."""

import pytest

from gemma_ops.cli import app
from gemma_ops.errors import ConfigError, DataError


def task(*arguments):
    app(["task", *map(str, arguments)], standalone_mode=False)


def test_the_command_for_inspect_asks_one_row_at_a_time(tmp_path, capsys):
    """In a batch rows are padded, and some answers come out otherwise."""
    task("export", "support_desk", "--to", "inspect", "--out", tmp_path / "out", "--rows", 3)
    command, comment = capsys.readouterr().out.split("\n  inspect eval ")[1].split("\none row at a time", 1)
    assert "--max-connections 1 -M batch_size=1 " in command
    assert comment
    assert all(line.endswith("\\") for line in command.splitlines()[:-1])


def test_a_folder_may_be_named_with_dots(tmp_path, capsys):
    """`a/b/..` is `a`, whether or not there is a `b`."""
    (tmp_path / "a").mkdir()
    task("export", "support_desk", "--to", "inspect", "--out", tmp_path / "a/b/..", "--rows", 3)
    assert (tmp_path / "a/task/task.yaml").is_file()
    assert (tmp_path / "a/data.jsonl").is_file()
    with pytest.raises(ConfigError, match="not an empty folder"):
        task("export", "support_desk", "--to", "inspect", "--out", tmp_path / "a/c/..")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be made"):
        task("export", "support_desk", "--to", "inspect", "--out", tmp_path / "file/below")


def test_a_missing_data_folder_is_asked_for_by_the_verbs_own_option(tmp_path):
    for verb in (
        ("export", "gsm8k", "--to", "lm-eval", "--out", tmp_path / "out"),
        ("import", tmp_path / "samples.jsonl", "--task", "gsm8k", "--target", "x"),
    ):
        with pytest.raises(DataError) as caught:
            task(*verb)
        assert "--source FOLDER" in caught.value.fix
        assert "data.path" not in caught.value.fix


def test_the_harnesss_totals_are_no_log(tmp_path):
    path = tmp_path / "results_2026-01-01T00-00-00.json"
    path.write_text('{"results": {}}')
    with pytest.raises(DataError) as caught:
        task("import", path, "--task", "support_desk", "--target", "x", "--out", tmp_path / "a.jsonl")
    assert "totals" in caught.value.what
    assert "samples_*.jsonl" in caught.value.fix
