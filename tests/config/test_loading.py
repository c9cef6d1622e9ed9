"""The configuration tree and its reader: every problem at once, with its place and the way out."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from gemma_ops import config
from gemma_ops.cli.eject import eject
from gemma_ops.config.loading import config_schema, read_run_config
from gemma_ops.config.shipped import root
from gemma_ops.errors import ConfigError
from gemma_ops.runs import digest


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_all_problems_come_in_one_message_with_file_line_and_suggestion(tmp_path):
    file = write(
        tmp_path / "a.yaml",
        "train:\n  epoch: 3\n  batch: ten\nmodle: {}\nevaluate:\n  gates:\n    - {metric: a, test: superior}\n",
    )
    with pytest.raises(ConfigError) as caught:
        read_run_config([file], ["train.lora.rnk=3", "nonsense"])
    text = caught.value.what
    assert text.startswith("6 problems")
    assert f"{file}:2: train.epoch: unknown key, did you mean epochs?" in text
    assert f"{file}:3: train.batch: input should be a valid integer" in text
    assert f"{file}:4: modle: unknown key, did you mean model?" in text
    assert f"{file}:7: superior and noninferior need `versus`" in text
    assert "--set train.lora.rnk=3: unknown key, did you mean rank?" in text
    assert "--set nonsense: expected key=value" in text
    assert caught.value.exit_code == 2


def test_files_merge_left_to_right_and_set_comes_last(tmp_path):
    first = write(
        tmp_path / "first.yaml", "train: {epochs: 1, batch: 8, micro_batch: 2}\nevaluate: {targets: [base]}\n"
    )
    second = write(tmp_path / "second.yaml", "train: {epochs: 2}\nevaluate: {targets: [tuned]}\n")
    result = read_run_config([first, second], ["train.batch=4"])
    assert (result.train.epochs, result.train.batch, result.train.micro_batch) == (2.0, 4, 2)
    assert result.evaluate.targets == ("tuned",)
    assert result.name == "first"


def test_scientific_notation_without_a_point_is_a_number(tmp_path):
    assert read_run_config([write(tmp_path / "a.yaml", "train: {learning_rate: 1e-5}")]).train.learning_rate == 1e-5


def test_a_key_given_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.yaml:3: train\.epochs is given twice"):
        read_run_config([write(tmp_path / "a.yaml", "train:\n  epochs: 1\n  epochs: 2\n")])


def test_broken_yaml_names_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.yaml:2: not valid YAML"):
        read_run_config([write(tmp_path / "a.yaml", "train: {epochs: 1\nname: x\n")])


def test_relative_paths_count_from_the_file(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    write(tmp_path / "rows.jsonl", "{}")
    assert read_run_config([write(folder / "a.yaml", "data: {path: ../rows.jsonl}")]).data.path == str(
        tmp_path / "rows.jsonl"
    )
    assert (
        read_run_config([write(folder / "b.yaml", "model: {base: google/gemma-4-E2B-it}")]).model.base
        == "google/gemma-4-E2B-it"
    )


def test_unknown_configuration_suggests_a_shipped_one():
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        read_run_config(["quikstart"])


def test_the_tree_is_frozen():
    with pytest.raises(ValidationError):
        config.RunConfig().train.epochs = 3.0


def test_locations_and_machine_settings_stay_out_of_fingerprints():
    here, there = config.DataConfig(path="/a"), config.DataConfig(path="/b")
    assert digest.of_json(here) == digest.of_json(there)
    assert digest.of_json(config.DataConfig(valid_share=0.1)) != digest.of_json(here)
    with pytest.raises(TypeError, match="no canonical form"):
        digest.of_json({"a": object()})


def test_schema_describes_every_section_with_its_help():
    result = config_schema()
    assert result["properties"]["train"]
    assert "register" in result["properties"]
    assert "turns LoRA into QLoRA" in str(result["$defs"]["TrainConfig"]["properties"]["weights"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("data: {path: a, hub: b}", "data.path or data.hub, not both"),
        ("data: {prompt: '{a}'}", "go together"),
        ("train: {packing: false, batch: 10, micro_batch: 4}", "must divide"),
        ("train: {early_stop: 2}", "needs train.eval_every"),
        ("evaluate: {gates: [{metric: a, test: at_least, versus: base}]}", "at_least takes none"),
    ],
)
def test_contradictions_are_refused_when_read(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_run_config([write(tmp_path / "a.yaml", text)])


@pytest.mark.parametrize(
    "given, key, expected",
    [
        ("data.prompt={question}", "data.prompt", "{question}"),
        ("data.prompt='{a}: {b}'", "data.prompt", "{a}: {b}"),
        ('data.prompt="{a}" and "{b}"', "data.prompt", '"{a}" and "{b}"'),
        ("data.prompt= {a}", "data.prompt", " {a}"),
        ("data.system=!tag x", "data.system", "!tag x"),
        ("data.system=null", "data.system", None),
        ("recipe=null", "recipe", "null"),
        ("name=12", "name", "12"),
        ("name=2026-10-10", "name", "2026-10-10"),
        ("name=2026-13-45", "name", "2026-13-45"),
        ("model.revision=1e10", "model.revision", "1e10"),
        ("data.pii=off", "data.pii", "off"),
        ("register.name=007", "register_.name", "007"),
        ("machine.mlflow=null", "machine.mlflow", None),
        ("evaluate.tasks=support_desk", "evaluate.tasks", ("support_desk",)),
        ("evaluate.tasks=[a, 12]", "evaluate.tasks", ("a", "12")),
        ("quantize.formats=q8_0", "quantize.formats", ("q8_0",)),
        ("train.epochs=2", "train.epochs", 2.0),
        ("train.batch=null", "train.batch", ConfigError),
        ("train.packing=True", "train.packing", True),
        ("train.trl={a: 1, b: off, c: false}", "train.trl", {"a": 1, "b": "off", "c": False}),
    ],
)
def test_set_takes_text_where_the_tree_wants_text_and_yaml_elsewhere(given, key, expected):
    sets = [given, "data.completion=x"] if given.startswith("data.prompt") else [given]
    if expected is ConfigError:
        with pytest.raises(ConfigError, match=re.escape(f"--set {given}")):
            read_run_config([], sets)
        return
    value = read_run_config([], sets)
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected


def test_values_yaml_cannot_construct_are_problems_with_their_place(tmp_path):
    file = write(
        tmp_path / "a.yaml",
        "name: !tag x\ntrain:\n  epochs: !!int many\n  trl: !t {a: 1}\n  batch: 2026-13-45\ndata: &a\n  system: *a\n",
    )
    with pytest.raises(ConfigError) as caught:
        read_run_config([file], ["train.batch=!tag 4"])
    text = caught.value.what
    assert text.startswith("5 problems")
    assert f"{file}:1: name: can't be read" in text
    assert f"{file}:3: train.epochs: can't be read" in text
    assert f"{file}:4: train.trl: the tag !t means nothing here" in text
    assert f"{file}:6: data.system: this alias stands inside the value it repeats" in text
    assert "--set train.batch=!tag 4: train.batch: can't be read" in text
    with pytest.raises(ConfigError, match=r"a\.yaml:1: train\.batch: input should be a valid integer"):
        read_run_config([write(tmp_path / "a.yaml", "train: {batch: 2026-13-45}")])


def test_only_true_and_false_are_booleans_and_text_stays_text(tmp_path):
    file = write(
        tmp_path / "a.yaml",
        "name: 12\ndata: {pii: off, path: 2026-10-10, system: yes}\ntrain: {packing: TRUE, trl: {x: on, y: False}}\n",
    )
    result = read_run_config([file])
    assert (result.name, result.data.pii, result.data.path, result.data.system) == ("12", "off", "2026-10-10", "yes")
    assert result.train.packing is True
    assert result.train.trl == {"x": "on", "y": False}


def test_what_lies_beside_the_file_is_found_from_anywhere(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    for inner in ("rows", "mytask", "base", "nano", "elsewhere"):
        (folder / inner).mkdir(parents=True)
    write(folder / "mytask" / "task.yaml", "")
    write(folder / "base" / "config.json", "{}")
    write(folder / "nano" / "config.json", "{}")
    write(folder / "mine.py", "")
    (folder / "link.jsonl").symlink_to(folder / "mine.py")
    monkeypatch.chdir(tmp_path)
    result = read_run_config(
        [
            write(
                folder / "a.yaml",
                "recipe: mine\nmodel: {base: base}\ndata: {path: rows}\nevaluate: {tasks: [mytask, rows, "
                "support_desk]}",
            )
        ]
    )
    assert result.recipe == str(folder / "mine.py")
    assert result.model.base == str(folder / "base")
    assert result.data.path == str(folder / "rows")
    assert result.evaluate.tasks == (str(folder / "mytask"), "rows", "support_desk")
    other = read_run_config(
        [write(folder / "b.yaml", "recipe: lora\nmodel: {base: nano}\ndata: {path: link.jsonl}")],
        ["evaluate.tasks=mytask"],
    )
    assert (other.recipe, other.model.base, other.evaluate.tasks) == ("lora", "nano", ("mytask",))
    assert other.data.path == str(folder / "link.jsonl"), "a link keeps its name, which says the format"
    assert read_run_config([write(folder / "c.yaml", "model: {base: elsewhere}")]).model.base == "elsewhere"


def test_shipped_configurations_keep_their_names():
    for path in (root() / "configs").glob("*.yaml"):
        result = read_run_config([path])
        assert result.recipe == (path.stem if path.stem in ("distill", "baseline") else "lora")
        assert result.evaluate.tasks in (("support_desk",), ("banking77",), ("drawn_forms",))
        assert result.model.base == "nano" or result.model.base.startswith("google/")


def test_home_is_expanded_and_machine_folders_count_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()
    file = write(tmp_path / "a.yaml", "machine: {runs: ~/runs}\ndata: {path: ~/rows.jsonl}")
    result = read_run_config([file], ["machine.mlflow=~/mlflow"])
    assert result.machine.runs == str(tmp_path / "runs")
    assert result.machine.mlflow == str(tmp_path / "mlflow")
    assert result.data.path == str(tmp_path / "rows.jsonl")
    assert read_run_config([write(tmp_path / "b.yaml", "machine: {runs: runs}")]).machine.runs == "runs"
    assert read_run_config([], ["machine.mlflow=http://host:1/~x"]).machine.mlflow == "http://host:1/~x"


def test_an_empty_section_holds_nothing_and_can_be_filled(tmp_path):
    file = write(tmp_path / "a.yaml", "train:\nregister:\nmachine: null\n")
    result = read_run_config([file], ["train.lora.rank=3", "register.description=x"])
    assert (result.train.lora.rank, result.train.batch, result.registration().description) == (3, 16, "x")
    first = write(tmp_path / "b.yaml", "train:\n  epochs: 2\n  lora:\n  trl:\n")
    assert read_run_config([first, file]).train.epochs == 2.0


def test_merge_keys_are_refused_with_what_to_write_instead(tmp_path):
    file = write(tmp_path / "a.yaml", "train: &t {epochs: 2}\nmerge:\n  <<: *t\n")
    with pytest.raises(
        ConfigError, match=r"^1 problem .*\n  .*a\.yaml:3: the merge key << isn't read: write the keys out"
    ):
        read_run_config([file])


def test_a_set_hides_the_places_of_what_it_replaces(tmp_path):
    file = write(tmp_path / "a.yaml", "evaluate:\n  gates:\n    - {metric: a, test: at_least}\n")
    with pytest.raises(ConfigError, match=r"\n  --set evaluate\.gates=\[\{metric: b, test: best\}\]: input should be"):
        read_run_config([file], ["evaluate.gates=[{metric: b, test: best}]"])


def test_ejecting_twice_restores_the_shipped_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = eject(["quickstart"], tmp_path)
    write(tmp_path / "recipes" / "lora.py", "mine")
    assert eject(["quickstart"], tmp_path, force=True) == written
    assert (tmp_path / "recipes" / "lora.py").read_bytes() == (root() / "recipes" / "lora.py").read_bytes()
    with pytest.raises(ConfigError, match="it is not shipped"):
        eject([str(tmp_path / "configs" / "quickstart.yaml")], tmp_path, force=True)
    (tmp_path / "shipped").symlink_to(root())
    with pytest.raises(ConfigError, match="is the shipped one itself"):
        eject(["quickstart"], tmp_path / "shipped", force=True)
