"""Every trap has a mutant, and every mutant still finds its place. That they die: `make mutants`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gemma_ops import family
from tests.mutants.__main__ import _source, check
from tests.mutants.table import MUTANTS

ROOT = Path(__file__).parents[2]


def test_every_trap_has_a_mutant():
    assert {mutant.trap for mutant in MUTANTS} == {trap.code for trap in family.TRAPS}


def test_every_mutant_changes_one_place_and_stays_python():
    for mutant in MUTANTS:
        compile(check(mutant), mutant.file, "exec")
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert _source(ROOT / "tests" / file, name.partition("[")[0])


def test_mutants_run_as_a_module():
    assert importlib.util.find_spec("tests.mutants.__main__")
