"""llama.cpp's C interface for images and sounds (mtmd.h), in the library that `xllamacpp` brings.

It gives what a tower says of an image or a sound, and the logits of a prompt that shows them: the text goes in as ids,
and where the soft tokens stand llama.cpp puts what the tower said.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.errors import ModelError
from gemma_ops.modeling.closing import Closing
from gemma_ops.modeling.llamacpp_library import (
    SILENT,
    GgufLogits,
    Parameters,
    Signature,
    bind_functions,
    llamacpp_library,
    unknown_interface,
)
from gemma_ops.modeling.llamacpp_shown import read_image_reading

_MARKER = b"<__media__>"
_TEXT = 0
"""Type of a chunk of text (`mtmd_input_chunk_type`)."""
_THREADS, _LEAST, _MOST = 5, 12, 13
"""Places, in words of 4 bytes, of the threads and of an image's least and most tokens in `mtmd_context_params`."""
_OPEN = 0xFFFFFFFF
_DEFAULTS = {4: 1, _THREADS: 4, 10: _OPEN, 11: 1, _LEAST: _OPEN, _MOST: _OPEN, 18: 1024}
"""Defaults that tell whether these places are still where they were."""


class _Text(ctypes.Structure):
    """mtmd.h, `mtmd_input_text`."""

    _fields_ = (
        ("text", ctypes.c_char_p),
        ("length", ctypes.c_size_t),
        ("add_special", ctypes.c_bool),
        ("parse_special", ctypes.c_bool),
    )


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32
_SIGNATURES: dict[str, Signature] = {
    "mtmd_log_set": (None, (_POINTER, _POINTER)),
    "mtmd_helper_log_set": (None, (_POINTER, _POINTER)),
    "mtmd_context_params_default": (Parameters, ()),
    "mtmd_init_from_file": (_POINTER, (ctypes.c_char_p, _POINTER, Parameters)),
    "mtmd_free": (None, (_POINTER,)),
    "mtmd_bitmap_init": (_POINTER, (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p)),
    "mtmd_bitmap_init_from_audio": (_POINTER, (ctypes.c_size_t, ctypes.POINTER(ctypes.c_float))),
    "mtmd_bitmap_free": (None, (_POINTER,)),
    "mtmd_input_chunks_init": (_POINTER, ()),
    "mtmd_input_chunks_size": (ctypes.c_size_t, (_POINTER,)),
    "mtmd_input_chunks_get": (_POINTER, (_POINTER, ctypes.c_size_t)),
    "mtmd_input_chunks_free": (None, (_POINTER,)),
    "mtmd_input_chunk_get_type": (ctypes.c_int, (_POINTER,)),
    "mtmd_input_chunk_get_n_tokens": (ctypes.c_size_t, (_POINTER,)),
    "mtmd_tokenize": (_INT, (_POINTER, _POINTER, ctypes.POINTER(_Text), ctypes.POINTER(_POINTER), ctypes.c_size_t)),
    "mtmd_encode_chunk": (_INT, (_POINTER, _POINTER)),
    "mtmd_get_output_embd": (ctypes.POINTER(ctypes.c_float), (_POINTER,)),
    "mtmd_helper_eval_chunk_single": (
        _INT, (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT, ctypes.c_bool, ctypes.POINTER(_INT)),
    ),
    "llama_model_n_embd": (_INT, (_POINTER,)),
}  # fmt: skip


@cache
def _library() -> Any:
    """Return the library with the signatures used here. Raises MachineError for an interface that is another."""
    library = llamacpp_library()
    bind_functions(library, _SIGNATURES)
    found = library.mtmd_context_params_default()
    for name in ("mtmd_log_set", "mtmd_helper_log_set"):
        getattr(library, name)(ctypes.cast(SILENT, ctypes.c_void_p), None)
    if (words := {place: int(found.words[place]) for place in _DEFAULTS}) != _DEFAULTS:
        raise unknown_interface(f"its parameters for images are {words} where {_DEFAULTS} stood")
    return library


class GgufMedia(Closing):
    """An mmproj file beside a model; a context manager that frees it.

    `budget`: most soft tokens of an image. Raises ModelError when llama.cpp refuses the file, or its towers are another
    model's.
    """

    def __init__(self, model: GgufLogits, projector: Path, *, budget: int | None = None, threads: int = 1) -> None:
        if not projector.is_file():
            raise ModelError(f"{projector} does not exist", "run the step `quantize` first, or correct the path")
        self._model, self._library = model, _library()
        self._singly = read_image_reading(projector) == "token by token"
        parameters = self._library.mtmd_context_params_default()
        parameters.words[_THREADS] = threads
        if budget is not None:
            parameters.words[_LEAST], parameters.words[_MOST] = 1, budget
        self._context = self._library.mtmd_init_from_file(str(projector).encode(), model.model, parameters)
        if not self._context:
            raise ModelError(
                f"llama.cpp can't load {projector} beside {model.path}",
                "make both files from one checkpoint: --redo quantize",
            )

    def close(self) -> None:
        """Free the towers."""
        if self._context:
            self._library.mtmd_free(self._context)
        self._context = None

    def embeddings(self, shown: np.ndarray) -> np.ndarray:
        """Return what a tower says of an image, (rows, columns, 3) uint8, or of a sound at 16 kHz, (samples,) float32:
        (soft tokens, width) float32."""
        with _Chunks(self._library, self._context, shown) as chunk:
            if self._library.mtmd_encode_chunk(self._context, chunk):
                raise ModelError("llama.cpp can't encode an image or a sound", "export the towers again")
            count = int(self._library.mtmd_input_chunk_get_n_tokens(chunk))
            width = int(self._library.llama_model_n_embd(self._model.model))
            values = self._library.mtmd_get_output_embd(self._context)
            return np.ctypeslib.as_array(values, (count, width)).copy()

    def read_logits(
        self, ids: Sequence[int], types: Sequence[int], shown: Sequence[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yield the logits of the token after each position of text in a prompt, in order, (positions, vocabulary)
        float32; `types` as in `Seen.types`, `shown` in the order of the prompt, as for `embeddings`. The logits after
        soft tokens are left out.

        Raises ModelError when llama.cpp can't read the prompt, or an image has another number of soft tokens in it.
        """
        self._model.clear()
        first, media = 0, iter(shown)
        for soft, group in groupby(zip(ids, types, strict=True), key=lambda pair: pair[1] != 0):
            piece = [token for token, _ in group]
            if soft:
                self._read_chunk(next(media), first, len(piece))
            else:
                yield from self._model.read_on(piece, first)
            first += len(piece)

    def _read_chunk(self, shown: np.ndarray, first: int, count: int) -> None:
        with _Chunks(self._library, self._context, shown) as chunk:
            found = int(self._library.mtmd_input_chunk_get_n_tokens(chunk))
            if found != count:
                raise ModelError(
                    f"llama.cpp makes {found} soft tokens of an image or sound that has {count} in training",
                    "ask about it in transformers; this is a defect of the mmproj file or of this llama.cpp",
                )
            after = _INT(0)
            batch = 1 if self._singly else count
            code = self._library.mtmd_helper_eval_chunk_single(
                self._context, self._model.context, chunk, first, 0, batch, False, ctypes.byref(after)
            )
        if code or after.value != first + count:
            raise ModelError(f"llama.cpp can't read an image or a sound (code {code})", "export the towers again")


class _Chunks:
    """The chunk of one image or sound, freed at the end."""

    def __init__(self, library: Any, context: Any, shown: np.ndarray) -> None:
        self._library, self._context, self._shown = library, context, np.ascontiguousarray(shown)

    def __enter__(self) -> Any:
        library, shown = self._library, self._shown
        if shown.ndim == 3:
            self._bitmap = library.mtmd_bitmap_init(shown.shape[1], shown.shape[0], shown.astype(np.uint8).tobytes())
        else:
            self._samples = shown.astype(np.float32)
            pointer = self._samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            self._bitmap = library.mtmd_bitmap_init_from_audio(len(self._samples), pointer)
        self._chunks = library.mtmd_input_chunks_init()
        text = _Text(_MARKER, len(_MARKER), False, True)
        bitmaps = (_POINTER * 1)(self._bitmap)
        code = library.mtmd_tokenize(self._context, self._chunks, ctypes.byref(text), bitmaps, 1)
        found = (
            library.mtmd_input_chunks_get(self._chunks, i) for i in range(library.mtmd_input_chunks_size(self._chunks))
        )
        media = [chunk for chunk in found if library.mtmd_input_chunk_get_type(chunk) != _TEXT]
        if code or len(media) != 1:
            self.__exit__()
            raise ModelError(
                f"llama.cpp takes no such image or sound (code {code}, {len(media)} chunks)", "export the towers again"
            )
        return media[0]

    def __exit__(self, *_: object) -> None:
        self._library.mtmd_input_chunks_free(self._chunks)
        self._library.mtmd_bitmap_free(self._bitmap)
