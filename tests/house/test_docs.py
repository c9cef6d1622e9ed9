"""Documents that can be wrong are compared with the code."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from gemma_ops import errors
from gemma_ops.cli import app
from gemma_ops.cli.exits import INTERRUPTED
from gemma_ops.config import ConfigSection, DraftConfig, ModelConfig, RunConfig
from gemma_ops.config.loading import read_run_config
from gemma_ops.config.shipped import shipped
from gemma_ops.family import SIZES
from gemma_ops.family.formats import GGUF
from gemma_ops.modeling.drafter_files import stock_drafter

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    path
    for pattern in ("*.md", ".github/*.md", "recipes/**/*.md", "configs/**/*.md", "eval/*.md", "gemma_ops/**/*.md")
    for path in ROOT.glob(pattern)
)
TABLES = {
    "commands": "gemma_ops/cli/README.md",
    "exits": "gemma_ops/cli/README.md",
    "configuration": "configs/README.md",
    "h200": "configs/benchmarks/README.md",
    "formats": "recipes/quantization.md",
    "drafters": "recipes/drafters.md",
}
"""The page that holds each table which is compared with the code or with a record."""


def block(name):
    page = (ROOT / TABLES[name]).read_text(encoding="utf-8")
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page, re.DOTALL)
    assert match, f"{TABLES[name]} has no block <!-- {name} -->"
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
    assert block("commands") == wanted, f"put this into {TABLES['commands']}:\n{wanted}"


def test_the_configuration_table_is_the_tree():
    wanted = "| key | default | meaning |\n|---|---|---|\n" + "\n".join(
        f"| `{key}` | `{default}` | {text} |" for key, default, text in keys()
    )
    assert block("configuration") == wanted, f"put this into {TABLES['configuration']}:\n{wanted}"


def test_every_key_explains_itself():
    assert not [key for key, _, text in keys() if not text and key not in {"name", "recipe"}]


def test_every_key_is_read_by_the_code():
    """A key nobody reads is a promise nobody keeps."""
    sources = [path for path in (ROOT / "gemma_ops").rglob("*.py") if path.parent.name != "config"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*sources, *(ROOT / "recipes").glob("*.py")])
    dead = [key for key, _, _ in keys() if not re.search(rf"\.{key.rsplit('.', 1)[-1]}_?\b", text)]
    assert not dead


def test_the_two_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quickstart", "test", "lint"} <= targets
    assert "make quickstart" in README
    assert "make test" in README


def test_every_error_has_its_exit_code():
    listed = {(name, int(code)) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", block("exits"), re.MULTILINE)}
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.OpsError)]
    assert listed == {(error.__name__, error.exit_code) for error in found}
    assert f"| {INTERRUPTED} |" in block("exits")


def anchors(page):
    """What a link may name behind `#`: headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pictures_and_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page} leads to {link}"
        assert not anchor or anchor in anchors(target), f"{page} leads to {link}"


def test_every_page_is_found_from_the_readme():
    found, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop().resolve()
        if page not in found and page.suffix == ".md":
            found.add(page)
            links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
            ahead += [page.parent / link for link in links if (page.parent / link).is_file()]
    assert {page.resolve() for page in PAGES} - found <= {ROOT / "CHANGELOG.md"}


def test_the_readme_stays_short_and_shows_the_way():
    assert len(README.encode()) <= 11_000
    verbs = re.findall(r"^\| `gemma-ops ([a-z ]+)` \|", README.split("## Eight verbs")[1], re.MULTILINE)
    assert len(verbs) == 8
    assert set(verbs) <= {name for name, _ in commands()}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    table = README.split("| extra |", 1)[1].split("\n\n")[0]
    assert {name for name in extras if name != "dev"} == set(re.findall(r"`([\w-]+)`", table))


def test_the_shipped_configurations_are_in_the_readme_with_their_memory():
    rows = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| (.+) \|$", README.split("## Shipped")[1], re.MULTILINE))
    assert rows.keys() >= set(shipped("configs", ".yaml"))
    for name in shipped("configs", ".yaml"):
        needs = re.search(r"needs ([\d.]+ GiB)", (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert not needs or rows[name].startswith(needs[1]), name


RECORD = json.loads((ROOT / "configs" / "benchmarks" / "h200.json").read_text(encoding="utf-8"))


def measured(key):
    """The cells that a record gives: speeds, ratios, share of the roofline, memory."""
    found = RECORD["measured"][key]
    ours, stock = found["arms"]["gemma-ops"], [found["arms"].get(name) for name in ("trl", "trl-packed")]
    speeds = [f"{arm['tokens_per_second']:,.0f}" if arm else "–" for arm in stock]
    ratios = [f"{ours['ratios'][name]:.1f}x" if name in ours["ratios"] else "–" for name in ("trl", "trl-packed")]
    share = found["useful_flops_per_token"] * ours["tokens_per_second"] / RECORD["flops"]
    memory = f"{ours['total_bytes'] / 2**30:.1f} GiB"
    return [
        *speeds,
        f"**{ours['tokens_per_second']:,.0f}**",
        ", ".join(ratios),
        f"{share:.0%}".replace("%", " %"),
        memory,
    ]


def format_rows():
    for each in GGUF.values():
        if each.mixed:
            given = "as `quantize.budget` or `quantize.bits` says"
            yield f"| `{each.name}` | {given} | {', '.join(each.types)}, tensor by tensor |"
            continue
        types = [each.tensor]
        if each.careful:
            types[0] += f", {each.careful} for values and the MLP's last matrix in half of the layers"
        instead = ", ".join(kind for kind in each.types if kind not in (each.tensor, each.careful))
        if instead:
            types.append(f"{instead} where rows are no whole blocks")
        yield f"| `{each.name}` | {each.bits:g} | {'; '.join(types)} |"


def test_the_table_of_formats_is_that_of_the_code():
    assert block("formats").splitlines()[2:] == list(format_rows())


def test_the_table_of_drafters_is_what_stock_takes():
    bases = {"`nano`": "nano"} | {f"Gemma 4 {key}": f"google/gemma-4-{key}-it" for key in SIZES}
    taken = {name: stock_drafter(DraftConfig(base="stock"), ModelConfig(base=base)) for name, base in bases.items()}
    assert block("drafters").splitlines()[2:] == [f"| {name} | `{found.base}` |" for name, found in taken.items()]


def test_benchmarks_are_those_of_the_record():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block("h200").splitlines()[2:]]
    assert len(rows) == 8
    for model, tokens, *cells in rows:
        size, weights = model.lower().split(", ")
        assert cells == measured(f"{size}-{weights}-300-{tokens.replace(',', '')}"), model
    lines = README.split("## Speed")[1].split("\n\n")[2].splitlines()[2:]
    for line in lines:
        model, speed, packed, padded, memory = (cell.strip() for cell in line.strip("|").split("|"))
        (row,) = [row for row in rows if row[0] == model and row[5] == f"{padded}x, {packed}x"]
        assert (f"**{speed}**", memory) == (row[4], row[7])


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
        *PAGES,
        *(ROOT / "configs").iterdir(),
        *(ROOT / "recipes").iterdir(),
        *(ROOT / "gemma_ops").rglob("*.py"),
    ]:
        if path.is_file():
            assert not machine_paths.search(path.read_text(encoding="utf-8")), path
