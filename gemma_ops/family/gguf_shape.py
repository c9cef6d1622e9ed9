"""What a GGUF file says about its model's size, read from the first bytes of the file without loading it.

Layout of the header: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; keys: gguf-py, `constants.py`, class
`Keys`.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from gemma_ops.errors import ModelError
from gemma_ops.family.shape import Layer, Shape

_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_TOKENS = "tokenizer.ggml.tokens"


def gguf_shape(file: Path) -> Shape:
    """Return the layers, widths and vocabulary of a Gemma 4 GGUF file. Raises ModelError for a file that is none."""
    try:
        with file.open("rb") as source:
            found = _fields(source)
        kind = found["general.architecture"]
        if kind != "gemma4":
            raise ModelError(f"{file} holds a {kind} model, not Gemma 4", "gemma-ops knows the Gemma 4 family only")
        return _shape({key.removeprefix("gemma4."): value for key, value in found.items()})
    except (OSError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{file} is no GGUF file of Gemma 4: {error}", "export it again") from error


def _shape(said: dict[str, Any]) -> Shape:
    count = int(said["block_count"])
    slides, wide = said["attention.sliding_window_pattern"], said["attention.key_length"]
    narrow, window = said.get("attention.key_length_swa", wide), int(said["attention.sliding_window"])
    first_shared = count - int(said.get("attention.shared_kv_layers", 0))
    each = {
        name: _each(said[key], count)
        for name, key in (
            ("heads", "attention.head_count"), ("kv", "attention.head_count_kv"), ("ffn", "feed_forward_length"),
        )
    }  # fmt: skip
    layers = tuple(
        Layer(
            i, window if slides[i] else None, int(narrow if slides[i] else wide), each["heads"][i], each["kv"][i],
            i >= first_shared, False, each["ffn"][i],
        )
        for i in range(count)
    )  # fmt: skip
    return Shape(
        int(said["embedding_length"]), int(said[_TOKENS]), layers, int(said["context_length"]),
        said.get("final_logit_softcapping"), int(said.get("embedding_length_per_layer_input", 0)),
        experts=int(said.get("expert_count", 0)), experts_per_token=int(said.get("expert_used_count", 0)),
        expert_ffn=int(said.get("expert_feed_forward_length", 0)),
    )  # fmt: skip


def _each(value: Any, count: int) -> list[int]:
    return [int(one) for one in value] if isinstance(value, list) else [int(value)] * count


def _fields(source: BinaryIO) -> dict[str, Any]:
    """Return every field of the header; for arrays of texts, their length."""
    if source.read(4) != b"GGUF":
        raise KeyError("it doesn't begin with GGUF")
    _, _, count = struct.unpack("<IQQ", source.read(20))
    found: dict[str, Any] = {}
    for _ in range(count):
        key = _text(source)
        found[key] = _value(source, _number(source, "<I"))
        if key == _TOKENS:
            break  # whatever follows is about tokens
    return found


def _value(source: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(source)
    if kind != _ARRAY:
        return _number(source, _NUMBERS[kind])
    inner, length = _number(source, "<I"), int(_number(source, "<Q"))
    if inner == _TEXT:
        for _ in range(length):
            source.seek(int(_number(source, "<Q")), 1)
        return length
    return [_value(source, inner) for _ in range(length)]


def _text(source: BinaryIO) -> str:
    return source.read(int(_number(source, "<Q"))).decode()


def _number(source: BinaryIO, form: str) -> Any:
    return struct.unpack(form, source.read(struct.calcsize(form)))[0]
