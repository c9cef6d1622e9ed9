"""llama.cpp's own encoders and decoders, called in the library that xllamacpp brings: what ours are compared with."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import gguf
import numpy as np

from gemma_ops.family.formats import TensorType

_FLOATS = ctypes.POINTER(ctypes.c_float)


def encode(x: np.ndarray, kind: TensorType, importance: np.ndarray | None = None) -> np.ndarray:
    """The bytes of rows as `ggml_quantize_chunk` makes them, (rows, bytes of a row)."""
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    found = np.empty((len(x), x.shape[1] // weights * size), dtype=np.uint8)
    x = np.ascontiguousarray(x, dtype=np.float32)
    columns = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32).ctypes.data_as(_FLOATS)
    code = int(gguf.GGMLQuantizationType[kind])
    _library().ggml_quantize_chunk(code, x.ctypes.data_as(_FLOATS), found.ctypes.data, 0, *x.shape, columns)
    return found


def decode(data: np.ndarray, kind: TensorType, width: int) -> np.ndarray:
    """The weights of rows of bytes as `dequantize_row_*` reads them, (rows, width)."""
    found = np.empty((len(data), width), dtype=np.float32)
    name = kind.lower() if kind.startswith("IQ") else kind.replace("Q", "q", 1)
    function = getattr(_library(), f"dequantize_row_{name}")
    function.argtypes = (ctypes.c_void_p, _FLOATS, ctypes.c_int64)
    function.restype = None
    data = np.ascontiguousarray(data)
    function(data.ctypes.data, found.ctypes.data_as(_FLOATS), found.size)
    return found


@cache
def _library() -> Any:
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    size = ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = (ctypes.c_int, _FLOATS, ctypes.c_void_p, size, size, size, _FLOATS)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library
