"""Verbs that measure: `bench train` runs one training step of gemma-ops against stock TRL and other trainers, `bench
gates` judges data of known truth, `bench prepare` prepares rows beside `datasets.map`, `bench quantize` makes files
beside llama.cpp's own."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from gemma_ops.cli.options import Json

app = typer.Typer()
bench_app = typer.Typer(
    help="Measure gemma-ops: training steps and preparing rows beside others, and whether gates keep their word.",
    no_args_is_help=True,
)
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def _bench() -> None:
    """Measure gemma-ops: training steps and preparing rows beside others, and whether gates keep their word."""


@bench_app.command("train")
def bench_train(
    size: Annotated[
        str, typer.Option(help="cpu, tiny, or a true size with random weights: e2b, e4b, 12b, 26b-a4b, 31b.")
    ] = "cpu",
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda; cpu for the small sizes, cuda for the true ones.", show_default=False),
    ] = None,
    weights: Annotated[str, typer.Option(help="bf16 or nf4.")] = "bf16",
    lengths: Annotated[
        str, typer.Option(help="chat: 300 tokens a row on average, 2,048 at most; long: 1,200, 4,096.")
    ] = "chat",
    mean: Annotated[int | None, typer.Option(help="Tokens of a row on average, instead.", show_default=False)] = None,
    longest: Annotated[
        int | None, typer.Option("--max", help="Tokens of the longest row, instead.", show_default=False)
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", "--rows", help="Rows of an optimizer step.", show_default=False)
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Rows of a forward pass where rows are padded.", show_default=False)
    ] = None,
    row_length: Annotated[int | None, typer.Option(help="Tokens of a packed row.", show_default=False)] = None,
    micro_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of a forward pass of gemma-ops; the plan decides by default.", show_default=False),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Keep only this many layers.", show_default=False)] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Timed optimizer steps; one more warms up.", show_default=False)
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Processes per trainer, interleaved.", show_default=False)
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Trainers, separated by commas: trl, trl-packed, trl-packed-nogc, gemma-ops, unsloth, axolotl.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights, rows and order.")] = 0,
    suite: Annotated[
        str | None, typer.Option(help="gpu: every size at 2k, 4k and 8k tokens a row.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Start nothing new after this time; run again to continue.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results; what is finished there is kept.")] = Path("runs/bench"),
    as_json: Json = False,
) -> None:
    """One training step of gemma-ops beside stock TRL, packed TRL, and Unsloth and axolotl where they are installed.

    The same random model, rows and adapter for all; each arm in its own process, repeats interleaved. Gradients are
    compared in float32 first. Leaves bench.json and bench.svg.
    """
    from gemma_ops.bench.training import BenchRunner, make_spec
    from gemma_ops.bench.training import suite as suites
    from gemma_ops.cli import console

    command = " ".join(["gemma-ops", *sys.argv[1:]])
    more: dict[str, Any] = {"threads": threads, "seed": seed}
    if arms:
        more["arms"] = tuple(name.strip() for name in arms.split(",") if name.strip())

    def tell(text: str) -> None:
        console.err().print(text, markup=False)

    if suite:
        if suite not in suites.SUITES:
            raise typer.BadParameter(f"one of: {', '.join(suites.SUITES)}", param_hint="--suite")
        found = suites.run_suite(suites.SUITES[suite](**more), out, tell, command=command, minutes=minutes)
        if as_json:
            console.print_json(found)
        for name, body in found.items():
            if not as_json:
                _show(name, body)
        return
    spec = make_spec(
        size, device=device, weights=weights, lengths=lengths,  # type: ignore[arg-type]
        mean=mean, longest=longest, batch=batch, micro_batch=micro_batch, row_length=row_length, steps=steps,
        repeats=repeats, micro_tokens=micro_tokens, layers=layers,
        **more,
    )  # fmt: skip
    import time

    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    folder = out / spec.name
    body = BenchRunner(spec, folder, tell, command=command, deadline=deadline).run()
    if as_json:
        console.print_json(body)
    else:
        _show(str(folder), body)


@bench_app.command("gates")
def bench_gates(
    times: Annotated[int, typer.Option(min=100, help="Data sets per line of the tables.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of the data.")] = 7,
    out: Annotated[
        Path | None, typer.Option(help="File for the record, JSON.", dir_okay=False, show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge data whose truth stands at the margin: wrong passes and fails, coverage, ten gates, looks, rows needed.

    A few minutes on one core. configs/benchmarks/gates.json is such a record.
    """
    from gemma_ops.bench.gates import measure_gates, record_lines

    body = measure_gates(times, seed, _tell)
    _put_record(body, out, record_lines(body), as_json=as_json)


@bench_app.command("quantize")
def bench_quantize(
    model: Annotated[
        list[str] | None, typer.Option(help="Size whose small twin is measured, again for more; all five by default.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of a run whose tuned model is measured too.", exists=True, file_okay=False),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the training of scales.")] = 400,
    out: Annotated[Path, typer.Option(help="Folder for results; what is finished there is kept.")] = Path(
        "runs/bench-quantize"
    ),
    as_json: Json = False,
) -> None:
    """Quantize small models in every way, and as llama.cpp does: bytes and divergence from bf16, on held-out rows.

    Ten minutes a model on one core. Leaves quantize.json.
    """
    from gemma_ops import family
    from gemma_ops.bench.quantization import measure_quantization, quantization_lines

    sizes = [_known_size(name) for name in model or family.CONFIGS]
    body = measure_quantization(sizes, run, out, steps, _tell)
    _put_record(body, out / "quantize.json", quantization_lines(body), as_json=as_json)


@bench_app.command("convert")
def bench_convert(
    size: Annotated[str, typer.Option(help="Size whose widths the checkpoint has.")] = "31b",
    layers: Annotated[int, typer.Option(min=1, help="Layers that it is cut to, whole repetitions of windows.")] = 6,
    form: Annotated[
        list[str] | None, typer.Option("--format", help="Format that is written, again for more.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; all cores by default.", show_default=False)
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for the checkpoint and the files, removed at the end.")] = Path(
        "runs/bench-convert"
    ),
    out: Annotated[
        Path | None, typer.Option(help="File for the record, JSON.", dir_okay=False, show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write files of a size's true widths with random weights: memory, and time beside a plain copy and llama.cpp.

    Some minutes, and 14 GB of disk for six layers of 31B. configs/benchmarks/conversion.json is such a record.
    """
    import os

    from gemma_ops.bench.conversion import conversion_lines, measure_conversion
    from gemma_ops.bench.conversion.conversion_record import FORMATS
    from gemma_ops.family.formats import GGUF

    forms = [GGUF[_known(name, GGUF, "format")].name for name in form or FORMATS]
    body = measure_conversion(size.lower(), layers, forms, threads or os.cpu_count() or 1, work, _tell)
    _put_record(body, out, conversion_lines(body), as_json=as_json)


@bench_app.command("prepare")
def bench_prepare(
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the support desk, made up.")] = 10_000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; all cores by default.", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each is measured, in turn.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the rows.")] = 5,
    out: Annotated[
        Path | None, typer.Option(help="File for the record, JSON.", dir_okay=False, show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """The step prepare beside datasets.map with the same template and tokenizer: rows a second a core, memory.

    About a minute on two cores. configs/benchmarks/preparation.json is such a record.
    """
    import os

    from gemma_ops.bench.preparation import measure_preparation, preparation_lines

    count = workers or os.cpu_count() or 1
    body = measure_preparation(rows, count, repeats, seed, _tell)
    _put_record(body, out, preparation_lines(body), as_json=as_json)


def _tell(text: str) -> None:
    """Say on the error stream what is being measured."""
    from gemma_ops.cli import console

    console.err().print(text, markup=False)


def _known_size(name: str) -> str:
    """Return a size as the code spells it. Raises ConfigError."""
    from gemma_ops import family

    sizes = {key.lower(): key for key in family.CONFIGS}
    return sizes[_known(name.lower(), sizes, "size")]


def _known(name: str, known: Iterable[str], what: str) -> str:
    from gemma_ops.errors import ConfigError

    if name not in known:
        raise ConfigError(f"unknown {what} {name!r}", f"one of: {', '.join(known)}")
    return name


def _put_record(body: dict[str, Any], file: Path | None, lines: Iterable[str], *, as_json: bool) -> None:
    """Write a record to its file, if it has one, and print it: as JSON, or as the lines of its tables."""
    from gemma_ops.cli import console
    from gemma_ops.runs.durable import write_json

    if file is not None:
        write_json(file, body)
    if as_json:
        console.print_json(body)
        return
    for line in lines:
        print(line)


def _show(name: str, body: dict[str, Any]) -> None:
    """Print the table of one benchmark, and where its files are."""
    from gemma_ops.bench.training import bench_report
    from gemma_ops.cli import console

    if "absent" in body:
        print(f"{name}: {body['absent']}\n")
        return
    for line in bench_report.opening(body):
        print(line)
    print()
    console.print_table(bench_report.report_head(body), bench_report.report_table(body))
    print()
    for line in bench_report.closing(body):
        print(line)
    print(f"{name}: bench.json, bench.svg\n")
