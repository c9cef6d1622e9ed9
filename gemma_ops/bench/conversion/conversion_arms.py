"""What `gemma-ops bench convert` measures: an arm a process, which imports first, takes time and memory then, and
prints JSON.

`gemma-ops` writes the file of a format and audits it. `copy` reads the checkpoint and writes as many bytes as the file
has, and nothing else: what the disk allows. `llama.cpp` reads the same tensors, encodes them by llama.cpp's own encoder
and writes nothing.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_audit import audit_gguf
from gemma_ops.export.gguf_tensors import GgufPlan, PlannedTensor, plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.export.tensor_bytes import tensor_pieces
from gemma_ops.family.formats import BITS, QUANTIZED_TYPES, TensorType
from gemma_ops.modeling.llamacpp_library import llamacpp_encode


def write_and_audit(source: MergedCheckpoint, plan: GgufPlan, out: Path, threads: int) -> None:
    """Write the file as the step `quantize` does."""
    write_gguf(source, plan, out, threads=threads)
    audit_gguf(out, plan)


def copy_bytes(source: MergedCheckpoint, plan: GgufPlan, out: Path, _threads: int) -> None:
    """Read every tensor and write the bytes that it takes in the file."""
    with out.open("wb") as file:
        for tensor in plan.tensors:
            share = BITS[tensor.type] / 16
            for _, piece in tensor_pieces(source, tensor):
                data = piece.contiguous().flatten().view(torch.uint8).numpy()
                file.write(data[: int(len(data) * min(1.0, share))].data)
        file.flush()
        os.fsync(file.fileno())


def encode_by_llamacpp(source: MergedCheckpoint, plan: GgufPlan, _out: Path, threads: int) -> None:
    """Encode every quantized tensor by llama.cpp's encoder, without importance."""
    import gguf

    def encode(tensor: PlannedTensor, piece: torch.Tensor) -> None:
        code = gguf.GGMLQuantizationType[tensor.type]
        weights, size = gguf.GGML_QUANT_SIZES[code]
        llamacpp_encode(piece.float().numpy(), int(code), piece.shape[1] // weights * size, None)

    def pieces() -> Iterator[tuple[PlannedTensor, torch.Tensor]]:
        for tensor in plan.tensors:
            if tensor.type in QUANTIZED_TYPES and tensor.source is not None:
                yield from ((tensor, piece) for _, piece in tensor_pieces(source, tensor))

    with ThreadPoolExecutor(threads) as pool:
        for group in _grouped(pieces(), 2 * threads):
            list(pool.map(lambda pair: encode(*pair), group))


ARMS: dict[str, Callable[[MergedCheckpoint, GgufPlan, Path, int], None]] = {
    "gemma-ops": write_and_audit,
    "copy": copy_bytes,
    "llama.cpp": encode_by_llamacpp,
}


def measured(arm: str, checkpoint: Path, form: str, out: Path, threads: int) -> dict[str, Any]:
    """Run an arm in this process. Returns `seconds`, `cpu_seconds`, `peak_bytes` beyond what was in use before, and the
    bytes of the file and of the largest tensor."""
    source = MergedCheckpoint(checkpoint)
    plan = plan_tensors(source, form)  # type: ignore[arg-type]
    quantized: TensorType = next(each.type for each in plan.tensors if each.kind == "attn_q.weight")
    torch.set_num_threads(1)
    before = _peak_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    ARMS[arm](source, plan, out, threads)
    found = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": _peak_bytes() - before,
        "type": quantized,
        "bytes": out.stat().st_size if out.exists() else 0,
        "parameters": sum(each.source.parameters for each in plan.tensors if each.source),
        "largest_tensor": max(each.source.stop - each.source.start for each in plan.tensors if each.source),
    }
    out.unlink(missing_ok=True)
    return found


def _peak_bytes() -> int:
    """Return the most memory that this process has had, without what its parent had before it began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes where there is no /proc: macOS


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    yield group


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, place, wanted, target, count = sys.argv[1:]
    print(json.dumps(measured(name, Path(place), wanted, Path(target), int(count))), file=replies)
