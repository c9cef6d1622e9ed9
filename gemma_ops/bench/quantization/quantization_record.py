"""The record of `gemma-ops bench quantize`: for each model and format, what each way to make the file costs in bytes
and in divergence from bf16, in llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from gemma_ops import __version__
from gemma_ops.bench.quantization.llamacpp_files import TABLES, write_llamacpp
from gemma_ops.bench.quantization.twins import make_twin, write_rows
from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.data.prompt_record import read_prompting
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.fidelity import Conversation, FileDivergence, fidelity_conversations
from gemma_ops.export.file_fidelity import file_divergence
from gemma_ops.export.gguf_fit import RowFit, training_rows
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.export.prompts import fidelity_prompts, manner_of
from gemma_ops.family.formats import REFERENCE, GgufName
from gemma_ops.fitting.fit_file import Fit
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.runs.durable import write_json

SCHEMA = "gemma-ops/quantize-bench@1"
WAYS = ("plain", *get_args(Fit))
PEER: GgufName = "q4_k_m"
"""Format in which llama.cpp's own quantizer is the peer."""
FORMATS: tuple[GgufName, ...] = ("q4_0", PEER, "iq4_xs")
_HELD_OUT, _FIT_ROWS = 120, 1000
"""Rows that files are compared on, and fitted to."""


def measure_quantization(
    models: Sequence[str], run: Path | None, out: Path, steps: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the twins of the sizes `models` and, with `run`, the tuned model of a run's folder; what is finished in
    `out` is kept. Returns the record."""
    lines = []
    task, general = write_rows(out / "rows")
    subjects = [(size, make_twin(size, out / size / "model", tell), task) for size in models]
    if run is not None:
        subjects.insert(0, (run.name, run / "merge" / "model", run / "prepare"))
    for name, model, data in subjects:
        done = out / name / "lines.json"
        if not done.exists():
            tell(name)
            write_json(done, list(_measure(name, model, data, general, out / name, steps, tell)))

        lines += json.loads(done.read_text(encoding="utf-8"))
    asked = " ".join(f"--model {name}" for name in models)
    return {
        "schema": SCHEMA,
        "command": f"gemma-ops bench quantize {asked}{f' --run {run}' if run else ''} --steps {steps}",
        "version": __version__,
        "tables": TABLES,
        "held_out": _HELD_OUT,
        "lines": lines,
    }


def _measure(
    name: str, model: Path, data: Path, general: Path, work: Path, steps: int, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    source = MergedCheckpoint(model)
    tokenizer, manner = load_tokenizer(model), manner_of(model, read_prompting(model))
    sets = {
        "task": _conversations(tokenizer, data, manner),
        "general": _conversations(tokenizer, general, manner),
    }
    machine = MachineConfig(device="cpu", workers=1)
    settings = QuantizeConfig(fit_steps=steps, fit_rows=_FIT_ROWS)
    rows = training_rows(data, tokenizer, manner, settings.fit_rows)
    files = work / "files"
    reference = files / "bf16.gguf"
    write_gguf(source, plan_tensors(source, REFERENCE), reference, threads=1)
    fits = {
        way: RowFit(source, settings.model_copy(update={"fit": way}), machine, "fp32", rows) for way in get_args(Fit)
    }
    columns = dict(fits["importance"].encoding(plan_tensors(source, PEER), work).importance)
    for form in FORMATS:
        plan = plan_tensors(source, form, TABLES)
        plain: dict[str, FileDivergence] = {}
        for way in WAYS:
            tell(f"{name} {form} {way}")
            file = files / f"{form}-{way}.gguf"
            if way == "plain":
                write_gguf(source, plan, file, threads=1)
            else:
                # What `rounding` rounds, `scales` would round again.
                write_gguf(source, plan, file, threads=1, encoding=fits[way].encoding(plan, work / form))
            found = _compared(file, reference, sets)
            plain = plain or found
            yield _line(name, form, way, file, found, plain)
            file.unlink()
        if form == PEER:
            file = files / "llamacpp.gguf"
            write_llamacpp(source, form, file, columns, 1)
            yield _line(name, form, "llama.cpp, imatrix", file, _compared(file, reference, sets), plain)
    shutil.rmtree(files)


def _conversations(tokenizer: Any, data: Path, manner: Any) -> list[Conversation]:
    rows = fidelity_prompts(data, _HELD_OUT, text_only=True)
    return fidelity_conversations(tokenizer, rows, manner=manner, reply=lambda _prompt, _count: [])


def _compared(file: Path, reference: Path, sets: dict[str, list[Conversation]]) -> dict[str, FileDivergence]:
    return {name: file_divergence(file, reference, chosen, 1) for name, chosen in sets.items()}


def _line(
    model: str, form: str, way: str, file: Path, found: dict[str, FileDivergence], plain: dict[str, FileDivergence]
) -> dict[str, Any]:
    line: dict[str, Any] = {"model": model, "format": form, "way": way, "bytes": file.stat().st_size}
    for name, divergence in found.items():
        answers, every = divergence.gain_over(plain[name])
        line[name] = {
            **divergence.report(),
            "gain": {**answers.report(), "every_token": every.report()},
        }
    return line


def quantization_lines(body: dict[str, Any]) -> list[str]:
    """Return the record as lines for a terminal."""
    found = ["model        format  way                      bytes         KL  top-1  of plain  general KL"]
    for line in body["lines"]:
        every, other = line["task"]["every_token"], line["general"]["every_token"]
        ratio = line["task"]["gain"]["every_token"]["kl_ratio"]
        found.append(
            f"{line['model']:<12} {line['format']:<7} {line['way']:<19} {line['bytes']:>10,}  {every['kl']:9.6f}  "
            f"{every['top1']:5.3f}  {ratio:8.3f}  {other['kl']:10.6f}"
        )
    return [*found, "", f"KL in nats from bf16 in llama.cpp, every token of {body['held_out']} held-out rows"]
