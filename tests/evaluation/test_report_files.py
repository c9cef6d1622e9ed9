"""The card of quantized files: what the step measured, from its report to the page."""

from __future__ import annotations

import json
import re

from gemma_ops.evaluation.report_files import files_section, recommended_file
from gemma_ops.verdicts import FileFidelity, Gate, Verdict
from tests.helpers.bare_verdict import bare_verdict

EVERY = {"kl": 0.00284, "kl_interval": [0.0027, 0.00298], "top1": 0.9713, "conversations": 120, "positions": 9762}
OWN = {"kl": 0.000192, "kl_interval": [0.00016, 0.00023], "top1": 1.0, "conversations": 120, "every_token": EVERY}
PLAIN = OWN | {"kl": 0.0007, "every_token": EVERY | {"kl": 0.0154}}
GAIN = {"kl_ratio": 0.27, "kl_ratio_interval": [0.23, 0.32],
        "every_token": {"kl_ratio": 0.184, "kl_ratio_interval": [0.176, 0.193]}}  # fmt: skip
FIT = {"how": "scales", "rows": 1000, "tokens": 81000, "plain": PLAIN, "gain": GAIN}
FITTED = {"fidelity": OWN, "general": EVERY | {"kl": 0.0134, "kl_interval": [0.011, 0.016]}, "fit": FIT}


def verdict(**bodies):
    targets = {
        name: {"identity": name, "bytes": 1_815_520, "fidelity": FileFidelity.of_report(body)}
        for name, body in bodies.items()
    }
    return Verdict.parse(bare_verdict(targets=targets), "verdict.json")


def words(page):
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_a_fitted_and_a_plain_file_are_shown_with_their_figures():
    shown = words(files_section(verdict(q4_0=FITTED, q8_0={"fidelity": OWN}, base={})))
    figures = "0.00019 [0.00016, 0.00023] 0.0028 [0.0027, 0.003]"
    assert f"q4_0 1.8 MB {figures} 0.013 [0.011, 0.016] 97.1% scales: 0.18 [0.18, 0.19]" in shown
    assert f"q8_0 1.8 MB {figures} – 97.1% –" in shown
    assert "on 120 validation rows in llama.cpp, and on 40 prompts" in shown
    assert "made for the training rows" in shown
    assert "base" not in shown
    assert "made for the training rows" not in words(files_section(verdict(q8_0={"fidelity": OWN})))


MIX = {"fidelity": OWN, "mix": {"frontier": [[1_700_000, 0.02], [1_800_000, 0.008], [1_900_000, 0.004]]}}
GATE = {
    "task": "t", "metric": "exact_match", "test": "noninferior", "versus": "tuned", "margin": 0.02, "threshold": -0.02,
    "words": "",
}  # fmt: skip


def test_two_files_are_drawn_over_their_bytes_with_what_mixes_would_reach():
    page = files_section(verdict(q4_0=FITTED, mixed=MIX))
    assert page.count('<svg class="plot"') == 1
    assert "q4_0: 0.00284 nats at 1.8 MB; mixed: 0.00284 nats at 1.8 MB" in page
    assert page.count('class="lead-line t-mixed" x1') == 2
    assert "best mixes of types are predicted to reach" in words(page)
    assert '<svg class="plot"' not in files_section(verdict(q4_0=FITTED))
    assert "best mixes" not in words(files_section(verdict(q4_0=FITTED, q8_0={"fidelity": OWN})))


def test_the_smallest_file_whose_gates_hold_is_recommended():
    def said(**outcomes):
        found = verdict(q8_0={"fidelity": OWN}, q4_0=FITTED, mixed=MIX)
        sizes = {"q8_0": 3_000_000, "q4_0": 1_815_520, "mixed": 1_815_519}
        targets = {name: each.model_copy(update={"bytes": sizes[name]}) for name, each in found.targets.items()}
        gates = tuple(Gate.model_validate({**GATE, "target": name, "outcome": how}) for name, how in outcomes.items())
        return recommended_file(found.model_copy(update={"targets": targets, "gates": gates}))

    assert said(q8_0="pass", q4_0="pass", mixed="pass") == ("Recommended: mixed, the smallest file whose gates hold.")
    assert said(q8_0="pass", q4_0="inconclusive", mixed="fail") == (
        "Recommended: q8_0, the smallest file whose gates hold (q4_0 has one that is undecided, mixed failed one)."
    )
    assert said(q4_0="pass").endswith("(q8_0 has no gate, mixed has no gate).")
    assert said(q4_0="fail") == "No file holds its gates, so none is recommended."
    assert said() == "No gate decides on a file, so none is recommended."


def test_without_a_measurement_there_is_no_card():
    assert files_section(verdict(base={})) == ""
    older = {"fidelity": {key: value for key, value in OWN.items() if key != "every_token"}}
    assert files_section(verdict(q4_0=older)) == ""


def test_the_record_survives_the_file(tmp_path):
    path = tmp_path / "verdict.json"
    path.write_text(verdict(q4_0=FITTED).text())
    found = Verdict.read(path).targets["q4_0"].fidelity
    assert (found.fit, found.plain_kl, found.ratio, found.ratio_interval) == ("scales", 0.0154, 0.184, (0.176, 0.193))
    assert json.loads(path.read_text())["targets"]["q4_0"]["fidelity"]["top1"] == 0.9713
