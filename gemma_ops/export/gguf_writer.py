"""A GGUF file written from a checkpoint, tensor by tensor and block of rows by block of rows.

The `gguf` package lays out header, metadata and tensor table; the data behind them is streamed, so memory stays at a
few tens of MB per thread whatever the model's size. The file is whole when it has its name: it is written next to it
and renamed.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

from gemma_ops.config import Privacy
from gemma_ops.export import gguf_metadata, gguf_tokenizer
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import GgufPlan, PlannedTensor
from gemma_ops.export.tensor_bytes import TensorBytes, tensor_pieces
from gemma_ops.privacy.classes import GGUF_KEY
from gemma_ops.runs import journal

_PLAIN = TensorBytes()
Planned = TypeVar("Planned", bound=PlannedTensor)


def write_gguf(
    source: MergedCheckpoint,
    plan: GgufPlan,
    out: Path,
    *,
    threads: int,
    learned: Privacy = "any",
    encoding: TensorBytes = _PLAIN,
) -> None:
    """Write the file `out` as planned; `learned`, the class of the rows behind the model, goes into its header. Raises
    ModelError for a tokenizer or config that GGUF can't say."""

    def describe(writer: Any) -> None:
        gguf_metadata.add_metadata(writer, source, plan.file_type)
        writer.add_string(GGUF_KEY, learned)
        gguf_tokenizer.add_tokenizer(writer, source)

    def data(tensor: PlannedTensor, pool: ThreadPoolExecutor) -> Iterable[bytes]:
        if (known := encoding.known(tensor)) is not None:
            return [known]
        jobs = (partial(encoding.encode, tensor, *piece) for piece in tensor_pieces(source, tensor))
        return _in_order(pool, jobs, 2 * threads)

    with one_thread_each(), ThreadPoolExecutor(threads) as pool:
        stream_gguf(out, "gemma4", plan.format, plan.tensors, describe, lambda tensor: data(tensor, pool))


def stream_gguf(
    out: Path,
    architecture: str,
    name: str,
    tensors: Sequence[Planned],
    describe: Callable[[Any], None],
    data: Callable[[Planned], Iterable[bytes]],
) -> None:
    """Write a GGUF file: the keys that `describe` adds to a `gguf.GGUFWriter`, then the bytes that `data` gives for
    each tensor, in order. `name` is its format in the journal."""
    import gguf

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, architecture)
    try:
        describe(writer)
        for tensor in tensors:
            code = gguf.GGMLQuantizationType[tensor.type]
            stored = gguf.quant_shape_to_byte_shape(tensor.shape, code)
            writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        stream: BinaryIO = writer.fout[0]
        writer.write_padding(stream, stream.tell())
        for number, tensor in enumerate(tensors, 1):
            before = stream.tell()
            stream.writelines(data(tensor))
            writer.write_padding(stream, stream.tell() - before)
            if number % 50 == 0 or number == len(tensors):
                journal.record(event="gguf", format=name, done=number, tensors=len(tensors))
        stream.flush()
        os.fsync(stream.fileno())
        writer.close()
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        for opened in writer.fout or ():
            with suppress(OSError):  # what is still buffered does not fit either, and the first error says why
                opened.close()
        raise


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let torch compute with one thread: the pool's threads are one a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], bytes]], ahead: int) -> Iterator[bytes]:
    """Run jobs in threads, yielding their results in order, with at most `ahead` of them under way."""
    waiting: deque[Future[bytes]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
