"""llama.cpp's C interface, in the library that `xllamacpp` brings: the logits of whole sequences at one reading.

llama.cpp's server gives probabilities for the tokens that it generates, one request a position, and of a large
vocabulary only the most likely. Its C interface (llama.h) gives the logits of every position that is asked for, over
the whole vocabulary, from one pass over the sequence.

Parameters are passed by value in structs that grow from release to release. They are filled by llama.cpp's own default
functions into room that is larger than they are, and of their fields only the first three of the context's are set,
after a look at whether their defaults stand where they always did.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.errors import MachineError, ModelError
from gemma_ops.modeling.closing import Closing

_DEFAULTS = (512, 2048, 512)
"""Defaults of the context's first three parameters: tokens of context, of a batch, and of a batch as computed."""
_CHUNK, _LEAST_CHUNK = 512, 32
"""Tokens read at once: at most, and at least."""
_ROOM = 1 << 26
"""Logits that exist at once: 256 MB."""


class Parameters(ctypes.Structure):
    """Room for a struct of parameters: more than llama.cpp's largest, a few hundred bytes."""

    _fields_ = (("words", ctypes.c_uint32 * 512),)


class _Batch(ctypes.Structure):
    """llama.h, `llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
SILENT = _LOG(lambda _level, _text, _data: None)
"""A log that keeps nothing."""
_FLOATS = ctypes.POINTER(ctypes.c_float)
Signature = tuple[Any, tuple[Any, ...]]
"""Type of a function's result, and those of its arguments."""
_SIGNATURES: dict[str, Signature] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (ctypes.c_void_p, ctypes.c_void_p)),
    "llama_model_default_params": (Parameters, ()),
    "llama_context_default_params": (Parameters, ()),
    "llama_model_load_from_file": (ctypes.c_void_p, (ctypes.c_char_p, Parameters)),
    "llama_model_free": (None, (ctypes.c_void_p,)),
    "llama_init_from_model": (ctypes.c_void_p, (ctypes.c_void_p, Parameters)),
    "llama_adapter_lora_init": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)),
    "llama_set_adapters_lora": (
        ctypes.c_int32,
        (ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)),
    ),
    "llama_free": (None, (ctypes.c_void_p,)),
    "llama_set_n_threads": (None, (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)),
    "llama_get_memory": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "llama_memory_clear": (None, (ctypes.c_void_p, ctypes.c_bool)),
    "llama_model_get_vocab": (ctypes.c_void_p, (ctypes.c_void_p,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (ctypes.c_void_p,)),
    "llama_batch_init": (_Batch, (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (ctypes.c_int32, (ctypes.c_void_p, _Batch)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (ctypes.c_void_p,)),
    "ggml_quantize_chunk": (ctypes.c_size_t, (ctypes.c_int, _FLOATS, ctypes.c_void_p, *[ctypes.c_int64] * 3, _FLOATS)),
}


@cache
def llamacpp_library() -> Any:
    """Return the loaded library with the signatures of the functions used here.

    Raises MachineError when `xllamacpp` is not installed, or holds a llama.cpp whose interface is another.
    """
    try:
        from xllamacpp import xllamacpp
    except ImportError as error:
        raise MachineError(
            "running GGUF files needs the package xllamacpp, which is not installed", "pip install 'gemma-ops[gguf]'"
        ) from error
    library = ctypes.CDLL(xllamacpp.__file__)
    bind_functions(library, _SIGNATURES)
    found = tuple(library.llama_context_default_params().words[:3])
    if found != _DEFAULTS:
        raise unknown_interface(f"its parameters begin with {found} instead of {_DEFAULTS}")
    library.llama_log_set(ctypes.cast(SILENT, ctypes.c_void_p), None)  # it tells of every tensor
    library.llama_backend_init()
    return library


def llamacpp_encode(x: np.ndarray, code: int, row_bytes: int, importance: np.ndarray | None = None) -> np.ndarray:
    """Return rows of weights, (rows, width) float32, as llama.cpp's own encoder of the GGML type `code` stores them:
    (rows, `row_bytes`) uint8. `importance`: (width,), as of its importance matrix."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    found = np.empty((len(x), row_bytes), dtype=np.uint8)
    columns = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        columns = importance.ctypes.data_as(_FLOATS)
    llamacpp_library().ggml_quantize_chunk(code, x.ctypes.data_as(_FLOATS), found.ctypes.data, 0, *x.shape, columns)
    return found


def bind_functions(library: Any, signatures: Mapping[str, Signature]) -> None:
    """Tell ctypes results and arguments of functions. Raises MachineError when the library lacks one."""
    try:
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise unknown_interface(f"it lacks {error}") from error


def unknown_interface(why: str) -> MachineError:
    """Return the error about a llama.cpp whose C interface isn't the one known here."""
    return MachineError(
        f"the llama.cpp in the installed xllamacpp has another C interface than the one known here: {why}",
        "install the version of xllamacpp that `gemma-ops doctor` names",
    )


class GgufLogits(Closing):
    """A GGUF file loaded for its logits; a context manager that frees it. `context`: tokens of the longest sequence;
    `together`: soft tokens of an image, which are read at once. `model` and `context` are llama.cpp's own.

    Raises ModelError when the file is absent or llama.cpp refuses it, MachineError as `llamacpp_library` does.
    """

    def __init__(self, path: Path, *, context: int, threads: int = 1, together: int = 0) -> None:
        if not path.is_file():
            raise ModelError(f"{path} does not exist", "run the step `quantize` first, or correct the path")
        self.path = path
        self._library = llamacpp_library()
        self.context: int | None = None
        self.model = self._library.llama_model_load_from_file(
            str(path).encode(), self._library.llama_model_default_params()
        )
        if self.model:
            parameters = self._library.llama_context_default_params()
            parameters.words[0] = context
            parameters.words[2] = max(int(parameters.words[2]), together)
            self.context = self._library.llama_init_from_model(self.model, parameters)
        if not self.context:
            self.close()
            raise ModelError(f"llama.cpp can't load {path}", "export it again; `gemma-ops doctor` shows the versions")
        self._library.llama_set_n_threads(self.context, threads, threads)
        vocabulary = self._library.llama_model_get_vocab(self.model)
        self._vocabulary = int(self._library.llama_vocab_n_tokens(vocabulary))
        self._room = context
        self._chunk = max(_LEAST_CHUNK, min(_CHUNK, _ROOM // self._vocabulary))
        self._batch = self._library.llama_batch_init(self._chunk, 0, 1)

    def put_on(self, adapter: Path) -> None:
        """Compute with an adapter's GGUF file from now on. Raises ModelError where llama.cpp refuses it."""
        library, name = self._library, str(adapter).encode()
        found = library.llama_adapter_lora_init(self.model, name)
        one, scale = (ctypes.c_void_p * 1)(found), (ctypes.c_float * 1)(1.0)
        if not found or library.llama_set_adapters_lora(self.context, one, 1, scale):
            raise ModelError(
                f"llama.cpp can't put {adapter} on {self.path}", "take the GGUF file of the adapter's base"
            )

    def close(self) -> None:
        """Free the model."""
        if self.context:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self.context)
        if self.model:
            self._library.llama_model_free(self.model)
        self.context = self.model = None

    def read_logits(self, ids: list[int]) -> Iterator[np.ndarray]:
        """Yield the logits of the token after each position of a sequence, in order: some positions at a time,
        (positions, vocabulary) float32.

        Raises ModelError when llama.cpp can't read the sequence, ValueError when it is longer than the context.
        """
        if len(ids) > self._room:
            raise ValueError(f"{len(ids)} tokens do not fit into a context of {self._room}")
        self.clear()
        yield from self.read_on(ids, 0)

    def clear(self) -> None:
        """Forget what was read."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self.context), True)

    def read_on(self, ids: Sequence[int], start: int) -> Iterator[np.ndarray]:
        """Yield the same of tokens that follow the `start` ones read so far."""
        library, batch = self._library, self._batch
        for first in range(0, len(ids), self._chunk):
            piece = ids[first : first + self._chunk]
            batch.n_tokens = len(piece)
            for place, token in enumerate(piece):
                batch.token[place], batch.pos[place] = token, start + first + place
                batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
            if code := library.llama_decode(self.context, batch):
                raise ModelError(f"{self.path}: llama.cpp can't read the sequence (code {code})", "check the token ids")
            values = library.llama_get_logits(self.context)
            yield np.ctypeslib.as_array(values, (len(piece), self._vocabulary)).copy()
