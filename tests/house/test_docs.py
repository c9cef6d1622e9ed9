"""Documents that can be wrong are compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from gemma_ops.cli import app
from gemma_ops.config import ConfigSection, RunConfig
from gemma_ops.config.loading import read_run_config
from gemma_ops.config.shipped import shipped

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name):
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert match, f"README.md has no block <!-- {name} -->"
    return match[1].strip()


def commands():
    def walk(command, path):
        for name, item in command.commands.items():
            if hasattr(item, "commands"):
                if item.invoke_without_command:
                    yield " ".join([*path, name]), item.help.split("\n")[0]
                yield from walk(item, [*path, name])
            else:
                yield " ".join([*path, name]), item.help.split("\n")[0]

    return list(walk(get_command(app), []))


def keys(model=RunConfig, prefix=""):
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if isinstance(field.default, ConfigSection):
            yield from keys(type(field.default), f"{key}.")
            continue
        default = field.get_default(call_default_factory=True)
        shown = (
            "null"
            if default is None
            else str(default).lower()
            if isinstance(default, bool)
            else f"[{', '.join(default)}]"
            if isinstance(default, tuple)
            else f"{default}"
            if default != ""
            else '""'
        )
        yield key, shown, " ".join((field.description or "").split()).split(". ")[0].rstrip(".")


def test_the_command_table_is_the_command_line():
    wanted = "| command | what it does |\n|---|---|\n" + "\n".join(
        f"| `gemma-ops {name}` | {text} |" for name, text in commands()
    )
    assert block("commands") == wanted, f"put this into README.md:\n{wanted}"


def test_the_configuration_table_is_the_tree():
    wanted = "| key | default | meaning |\n|---|---|---|\n" + "\n".join(
        f"| `{key}` | `{default}` | {text} |" for key, default, text in keys()
    )
    assert block("configuration") == wanted, f"put this into README.md:\n{wanted}"


def test_every_key_explains_itself():
    assert not [key for key, _, text in keys() if not text and key not in {"name", "recipe"}]


def test_every_key_is_read_by_the_code():
    """A key nobody reads is a promise nobody keeps."""
    sources = [
        path
        for path in (ROOT / "gemma_ops").rglob("*.py")
        if path.stem != "configfile" and path.parent.name != "config"
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*sources, *(ROOT / "recipes").glob("*.py")])
    dead = [key for key, _, _ in keys() if not re.search(rf"\.{key.rsplit('.', 1)[-1]}_?\b", text)]
    assert not dead


def test_the_two_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test", "lint"} <= targets
    assert "make quickstart" in README
    assert "make test" in README


def test_pictures_and_links_lead_somewhere():
    for path in re.findall(r"\]\((?!http|#)([^)#]+)\)|src=\"(?!http)([^\"]+)\"", README):
        assert (ROOT / (path[0] or path[1])).exists(), path


@pytest.mark.parametrize("name", shipped("configs", ".yaml"))
def test_shipped_configurations_load_and_open_with_their_command(name):
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    config = read_run_config([name])
    assert config.name == name
    head = text.split("\nname:")[0]
    assert f"gemma-ops run {name}" in head
    assert "hardware" in head
    assert "plan" in head


@pytest.mark.parametrize("name", shipped("configs", ".yaml"))
def test_what_shipped_configurations_pass_to_trl_is_not_refused(name, tmp_path):
    """Loading does not look into `train.trl`: TRL does, when training begins."""
    from gemma_ops.training.arguments import sft_arguments

    made = sft_arguments(read_run_config([name]).train, tmp_path, has_valid=True, rate=1e-4, device="cpu")
    assert made.learning_rate == 1e-4


def test_every_recipe_and_task_is_in_its_table():
    recipes = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in recipes for name in shipped("recipes", ".py"))
    tasks = (ROOT / "eval" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in tasks for name in shipped("eval"))


def test_the_project_speaks_of_itself_alone():
    machine_paths = re.compile(r"/work/|/root/|/tmp/[a-z]")
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "configs").iterdir(),
        *(ROOT / "recipes").iterdir(),
        *(ROOT / "gemma_ops").rglob("*.py"),
        *(ROOT / "eval").rglob("*.md"),
    ]:
        if path.is_file():
            assert not machine_paths.search(path.read_text(encoding="utf-8")), path
