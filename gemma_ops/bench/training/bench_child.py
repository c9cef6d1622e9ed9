"""One process of a benchmark: `python -m gemma_ops.bench.training.bench_child job.json`. What it measured goes into the
reply file that the job names; so does a failure, in words, because a benchmark goes on without an arm that can't run.

Four kinds of job: `save` writes the checkpoint that arms load, `gate` compares gradients in float32 on a small shape,
all arms in one process, `time` runs one arm once, and `rate` measures the largest products this GPU can do. With
`--serve` the process stays, and takes the names of job files from its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_ops.bench.training import bench_rows as made_rows
from gemma_ops.bench.training import bench_shapes
from gemma_ops.bench.training.arms import ARMS, REFERENCE, ArmTask
from gemma_ops.bench.training.bench_spec import BenchSpec, from_json, make_spec


def bench_main(path: Path) -> None:
    """Run the job in the file at `path`."""
    job = json.loads(path.read_text(encoding="utf-8"))
    reply = Path(job["reply"])
    try:
        result = _KINDS[job["kind"]](job)
    except Exception as error:  # told to the parent, which decides
        import traceback

        traceback.print_exc()
        result = {"error": _words(error)}
    half = reply.with_suffix(".partial")
    half.write_text(json.dumps(result), encoding="utf-8")
    half.replace(reply)


def time(job: dict[str, Any]) -> dict[str, Any]:
    """Time one arm, once."""
    spec, arm = from_json(job["spec"]), ARMS[job["arm"]]
    _first_imports(arm.name)
    _threads(spec)
    task, result = _train(spec, arm.name, job["model"], gradients=bool(job.get("gradients")), kernels=job["kernels"])
    if job.get("gradients"):
        from safetensors.torch import save_file

        assert task.watch.gradients is not None
        save_file(task.watch.gradients, job["gradients"])
    return result


def gate(job: dict[str, Any]) -> dict[str, Any]:
    """Return the relative error of every arm's gradients of one whole step against stock TRL, in float32, padded rows
    against packed."""
    spec = gate_spec(from_json(job["spec"]))
    _threads(spec)
    if spec.device == "cuda":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    from gemma_ops.bench.training.measure import agreement

    _, reference = _gradients(spec, REFERENCE)
    found: dict[str, dict[str, Any]] = {}
    for name in job["arms"]:
        try:
            loss, gradients = _gradients(spec, name)
            found[name] = agreement(gradients, reference) | {"loss": loss}
        except Exception as error:
            found[name] = {"problem": _words(error)}
    return {"gate": found}


def gate_spec(spec: BenchSpec) -> BenchSpec:
    """Return the small shape that exactness is shown on, with E2B's mechanisms whatever the size that is timed.
    Clipping is out of the way, and rows are longer than the window."""
    small = make_spec("tiny", device=spec.device, weights="fp32", steps=1, repeats=1, seed=spec.seed)
    return replace(small, max_grad_norm=1e9, threads=spec.threads, row_length=160)


def save_checkpoint(job: dict[str, Any]) -> dict[str, Any]:
    """Write the checkpoint that every arm loads."""
    from gemma_ops.modeling import made_up

    spec = from_json(job["spec"])
    _threads(spec)
    text = bench_shapes.text_config(spec.size, spec.layers)
    model = made_up.build_made_up(text, weights="bf16", device=spec.device, seed=spec.seed)
    made_up.save_made_up(model, Path(job["model"]))
    return {}


def product_rate(job: dict[str, Any]) -> dict[str, Any]:
    """Measure the floating-point operations per second of a bf16 product of squares, the ceiling of everything here."""
    import torch

    from gemma_ops.bench.training.measure import best_seconds

    side = 8192 if from_json(job["spec"]).device == "cuda" else 512
    device = from_json(job["spec"]).device
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    return {"flops": 2.0 * side**3 / best_seconds(lambda: a @ b, device)}


_KINDS = {"time": time, "gate": gate, "save": save_checkpoint, "rate": product_rate}


def _gradients(spec: BenchSpec, arm: str) -> tuple[float, dict[str, Any]]:
    task, result = _train(spec, arm, None, gradients=True, kernels=False, steps=0)
    assert task.watch.gradients is not None
    return result["losses"][0], task.watch.gradients


def _train(
    spec: BenchSpec, arm: str, model: str | None, *, gradients: bool, kernels: bool, steps: int | None = None
) -> tuple[ArmTask, dict[str, Any]]:
    from gemma_ops.bench.training.measure import Watch

    with tempfile.TemporaryDirectory(prefix="gemma-ops-bench-") as scratch:
        steps = spec.steps if steps is None else steps
        watch = Watch(spec.device, steps=steps, seed=spec.seed, gradients=gradients, kernels=kernels)
        drawn = made_rows.draw_rows(spec, bench_shapes.text_config(spec.size)["vocab_size"])
        folder = Path(model) if model else None
        tokenizer = folder or _tokenizer(Path(scratch) / "tokenizer")
        task = ArmTask(spec, arm, drawn, folder, tokenizer, Path(scratch), watch)
        settings = ARMS[arm].train(task)
        return task, watch.result() | {"settings": settings}


def _tokenizer(folder: Path) -> Path:
    from gemma_ops.modeling import made_up

    return made_up.save_tokenizer(folder)


def _first_imports(arm: str) -> None:
    """Import what must come before anything else, and what would otherwise be imported while memory is measured."""
    import importlib

    if arm == "unsloth":
        importlib.import_module("unsloth")
    for name in ("torch._dynamo", "bitsandbytes", "trl", "datasets"):
        importlib.import_module(name)
    from trl import SFTTrainer  # noqa: F401


def _threads(spec: BenchSpec) -> None:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if spec.device == "cpu":
        torch.set_num_threads(spec.threads)


def _words(error: BaseException) -> str:
    """Return an error as one line; a GPU that is full is reported as such."""
    name = type(error).__name__
    if name == "OutOfMemoryError" or "CUDA out of memory" in str(error):
        return "out of memory"
    first = str(error).strip().splitlines()
    return f"{name}: {first[0][:300]}" if first else name


def serve_cases() -> None:
    """Run the jobs whose files are named on standard input, one a line, and free each one's tensors."""
    import gc

    for line in sys.stdin:
        bench_main(Path(line.strip()))
        gc.collect()
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1] == "--serve":
        serve_cases()
    else:
        bench_main(Path(sys.argv[1]))
