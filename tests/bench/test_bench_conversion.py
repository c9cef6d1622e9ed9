"""`bench convert`: a small run of every arm, what it refuses, and the committed record as the page shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gemma_ops.bench.conversion import conversion_lines, measure_conversion
from gemma_ops.bench.conversion.conversion_arms import measured
from gemma_ops.bench.conversion.cut_checkpoint import write_cut
from gemma_ops.errors import ConfigError, MachineError

PAGE = Path(__file__).parents[2] / "configs/benchmarks/README.md"
RECORD = json.loads((PAGE.parent / "conversion.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    return write_cut("tiny", 5, tmp_path_factory.mktemp("cut") / "model")


def test_every_arm_says_what_it_took(cut, tmp_path):
    found = {arm: measured(arm, cut, "q4_0", tmp_path / "out.gguf", 1) for arm in ("copy", "gemma-ops", "llama.cpp")}
    for one in found.values():
        assert one["type"] == "Q4_0"
        assert one["largest_tensor"] > 100_000
        assert one["cpu_seconds"] > 0
    sizes = {arm: one["bytes"] for arm, one in found.items()}
    assert sizes["llama.cpp"] == 0
    assert sizes["copy"] == pytest.approx(sizes["gemma-ops"], rel=0.5)  # header and tokenizer are no tensors
    assert not list(tmp_path.iterdir())


def test_the_record_holds_a_line_a_format(tmp_path):
    told: list[str] = []
    body = measure_conversion("tiny", 5, ["q8_0"], 1, tmp_path, told.append)
    (line,) = body["lines"]
    assert (line["format"], line["type"]) == ("q8_0", "Q8_0")
    assert line["of_copy"] > 0
    assert line["of_llamacpp"] > 0
    assert 1 << 20 < line["peak_bytes"] < 1 << 30
    assert len(conversion_lines(body)) == 4
    assert told == ["a checkpoint of tiny with 5 layers", "q8_0"]
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_cut_or_written_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be cut to 4"):
        measure_conversion("tiny", 4, ["q8_0"], 1, tmp_path, str)
    with pytest.raises(MachineError, match="the arm copy failed for q3_k"):
        measure_conversion("tiny", 5, ["q3_k"], 1, tmp_path, str)  # type: ignore[list-item]


def test_the_table_is_the_record():
    page = PAGE.read_text(encoding="utf-8")
    block = re.search(r"<!-- conversion -->\n(.*?)<!-- /conversion -->", page, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].strip().splitlines()[2:]]
    assert rows == [
        [
            line["format"],
            f"{line['million_a_second']:,.0f}",
            f"{line['of_copy']:.2f}",
            f"{line['of_llamacpp']:.2f}",
            f"{line['peak_bytes'] / 1e6:,.0f} MB",
            f"{line['bytes'] / 1e9:.2f} GB",
        ]
        for line in RECORD["lines"]
    ]
    assert page.count(f"`{RECORD['command']}`") == 2
    assert all(line["peak_bytes"] < 2e9 for line in RECORD["lines"])
