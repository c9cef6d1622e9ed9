"""Bytes of serving, and the shape of a model read from the head of its GGUF file."""

from __future__ import annotations

import pytest
from serving import make_files

from gemma_ops.errors import ModelError
from gemma_ops.family.gguf_shape import gguf_shape
from gemma_ops.family.shape import Shape
from gemma_ops.family.sizes import SIZES
from gemma_ops.modeling.source import read_config
from gemma_ops.nano import WEIGHTS
from gemma_ops.planning.serving import serving_bytes


def test_a_gguf_file_says_the_shape_of_its_checkpoint(tmp_path):
    shape, wanted = gguf_shape(make_files(tmp_path) / "q8_0" / "model.gguf"), Shape.from_config(read_config(WEIGHTS))
    assert shape.layers == wanted.layers
    assert (shape.hidden, shape.vocab, shape.context, shape.softcap, shape.per_layer_dim) == (
        wanted.hidden, wanted.vocab, wanted.context, pytest.approx(wanted.softcap), wanted.per_layer_dim,
    )  # fmt: skip
    for body in (b"no", b"GGUF\x03\x00\x00\x00", b"GGUF" + bytes(40)):
        (tmp_path / "bad.gguf").write_bytes(body)
        with pytest.raises(ModelError, match=r"bad\.gguf is no GGUF file of Gemma 4"):
            gguf_shape(tmp_path / "bad.gguf")


def test_what_serving_takes_grows_with_slots_and_context():
    shape = SIZES["E2B"].shape if "E2B" in SIZES else next(iter(SIZES.values())).shape
    one = serving_bytes(shape, 3e9, slots=1, context=8192)
    two = serving_bytes(shape, 3e9, slots=2, context=8192)
    assert two.cache == 2 * one.cache == serving_bytes(shape, 3e9, slots=1, context=16384).cache
    assert one.window_cache < one.cache  # sliding layers are kept whole by llama.cpp
    own = [layer for layer in shape.layers if not layer.shares_kv]
    assert one.cache == 8192 * sum(4 * layer.kv_heads * layer.head_dim for layer in own)
    assert one.total == 3e9 + one.cache + one.workspace
