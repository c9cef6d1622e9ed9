"""A GGUF file written from a checkpoint, tensor by tensor and block of rows by block of rows.

The `gguf` package lays out header, metadata and tensor table; the data behind them is streamed, so memory stays at a
few tens of MB per thread whatever the model's size. The file is whole when it has its name: it is written next to it
and renamed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from gemma_ops.config import Privacy
from gemma_ops.export import gguf_metadata, gguf_tokenizer
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import GgufPlan, PlannedTensor
from gemma_ops.privacy.classes import GGUF_KEY
from gemma_ops.runs import journal

_PIECE = 1 << 21  # numbers per piece: 8 MB in fp32, a multiple of every block size when cut at rows


def write_gguf(source: MergedCheckpoint, plan: GgufPlan, out: Path, *, threads: int, learned: Privacy = "any") -> None:
    """Write the file `out` as planned; `learned`, the class of the rows behind the model, goes into its header. Raises
    ModelError for a tokenizer or config that GGUF can't say."""
    import gguf

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, "gemma4")
    try:
        gguf_metadata.add_metadata(writer, source, plan.format)
        writer.add_string(GGUF_KEY, learned)
        gguf_tokenizer.add_tokenizer(writer, source)
        for tensor in plan.tensors:
            code = gguf.GGMLQuantizationType[tensor.type]
            stored = gguf.quant_shape_to_byte_shape(tensor.shape, code)
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with ThreadPoolExecutor(threads) as pool:
            _write_data(writer, source, plan, pool, threads)
        writer.fout[0].flush()
        os.fsync(writer.fout[0].fileno())
        writer.close()
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        for stream in writer.fout or ():
            with suppress(OSError):  # what is still buffered does not fit either, and the first error says why
                stream.close()
        raise


def _write_data(writer: Any, source: MergedCheckpoint, plan: GgufPlan, pool: ThreadPoolExecutor, threads: int) -> None:
    stream: BinaryIO = writer.fout[0]
    writer.write_padding(stream, stream.tell())
    for number, tensor in enumerate(plan.tensors, 1):
        before = stream.tell()
        stream.writelines(_in_order(pool, _encoder(tensor), _pieces(source, tensor), 2 * threads))
        writer.write_padding(stream, stream.tell() - before)
        if number % 50 == 0 or number == len(plan.tensors):
            journal.record(event="gguf", format=plan.format, done=number, tensors=len(plan.tensors))


def _pieces(source: MergedCheckpoint, tensor: PlannedTensor) -> Iterator[torch.Tensor]:
    if tensor.source is None:
        yield torch.from_numpy(gguf_metadata.rope_factors(source))
    else:
        yield from source.slices(tensor.source.name, _PIECE)


def _encoder(tensor: PlannedTensor) -> Callable[[torch.Tensor], bytes]:
    """Return a function from a piece of a tensor, whole rows of it, to the bytes of its type."""
    import gguf

    code = gguf.GGMLQuantizationType[tensor.type]

    def encode(piece: torch.Tensor) -> bytes:
        if tensor.type == "BF16":
            return bytes(piece.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
        return bytes(gguf.quants.quantize(piece.float().numpy(), code).tobytes())

    return encode


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[torch.Tensor], bytes], pieces: Iterable[torch.Tensor], ahead: int
) -> Iterator[bytes]:
    """Apply a function in threads, yielding in order, with at most `ahead` pieces under way."""
    waiting: deque[Future[bytes]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(function, piece))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
