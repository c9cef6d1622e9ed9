"""llama.cpp's own encoders and decoders of tensor types: what ours are compared with."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np

from gemma_ops.family.formats import TensorType
from gemma_ops.modeling.llamacpp_library import llamacpp_encode, llamacpp_library

_FLOATS = ctypes.POINTER(ctypes.c_float)


def encode(x: np.ndarray, kind: TensorType, importance: np.ndarray | None = None) -> np.ndarray:
    """The bytes of rows as llama.cpp's own encoder makes them, (rows, bytes of a row)."""
    code = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[code]
    return llamacpp_encode(x, int(code), x.shape[1] // weights * size, importance)


def decode(data: np.ndarray, kind: TensorType, width: int) -> np.ndarray:
    """The weights of rows of bytes as `dequantize_row_*` reads them, (rows, width)."""
    found = np.empty((len(data), width), dtype=np.float32)
    name = kind.lower() if kind.startswith("IQ") else kind.replace("Q", "q", 1)
    function = getattr(llamacpp_library(), f"dequantize_row_{name}")
    function.argtypes = (ctypes.c_void_p, _FLOATS, ctypes.c_int64)
    function.restype = None
    data = np.ascontiguousarray(data)
    function(data.ctypes.data, found.ctypes.data_as(_FLOATS), found.size)
    return found
