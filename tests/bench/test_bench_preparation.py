"""`bench prepare`: a small run of every arm, and the committed record as the page shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gemma_ops.bench.preparation import measure_preparation, preparation_lines

PAGE = Path(__file__).parents[2] / "configs/benchmarks/README.md"
RECORD = json.loads((PAGE.parent / "preparation.json").read_text(encoding="utf-8"))


def test_every_arm_makes_the_same_tokens_of_the_same_rows():
    told = []
    body = measure_preparation(1000, 1, 1, 5, told.append)
    assert set(body["arms"]) == {"step", "tokens", "datasets", "step, a tenth of the rows"}
    assert len(told) == 4
    arms = body["arms"]
    assert arms["step"]["tokens"] == arms["tokens"]["tokens"] == arms["datasets"]["tokens"]
    assert arms["step, a tenth of the rows"]["rows"] == 100
    assert all(arm["rows_per_core_second"] > 0 and arm["peak_mib"] > 10 for arm in arms.values())
    assert body["ratios"]["tokens"] > 1
    assert len(preparation_lines(body)) == 6


def test_the_table_is_the_record():
    block = re.search(r"<!-- preparation -->\n(.*?)<!-- /preparation -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block[1].strip().splitlines()[2:]]
    stock = RECORD["arms"]["datasets"]["rows_per_core_second"]
    assert rows == [
        [
            name,
            f"{arm['rows']:,}",
            f"{arm['rows_per_core_second']:,}",
            f"{arm['rows_per_core_second'] / stock:.1f}x",
            f"{arm['peak_mib']:,} MiB",
        ]
        for name, arm in RECORD["arms"].items()
    ]
    assert f"`{RECORD['command']}`" in PAGE.read_text(encoding="utf-8")
