"""The table of formats is the only list of them, agrees with gguf-py, and a row added to it is known everywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import gguf

from gemma_ops.config import EvaluateConfig, QuantizeConfig, RegisterConfig
from gemma_ops.family import formats

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "gemma_ops/family/formats.py"
SOURCES = [
    path
    for folder in ("gemma_ops", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    # `ggml` holds the values and the bytes of tensor types, and a benchmark measures those that it names.
    if path != TABLE and not {"share", "ggml", "quantization"} & set(path.relative_to(ROOT).parts)
]


def test_the_spelled_names_are_those_of_the_table():
    assert get_args(formats.GgufName) == tuple(formats.GGUF)
    assert set(formats.DEFAULT_FORMATS) == {"q8_0", "q4_0"}
    assert formats.REFERENCE == "bf16"
    assert set(get_args(formats.VersionFormat)) == set(formats.FORMATS) - {"tuned"}
    assert set(get_args(formats.TensorType)) == set(formats.BITS)
    assert {engine for each in formats.FORMATS.values() for engine in each.engines} <= set(get_args(formats.Engine))


def test_types_and_sizes_are_those_of_gguf():
    for name, bits in formats.BITS.items():
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert bits == 8 * size / weights
        assert weights == formats.BLOCKS[name]
    for each in formats.GGUF.values():
        # llama.cpp's smaller mixes of a type are named _S: ours have that type alone.
        assert gguf.LlamaFileType[each.file_type].name.removesuffix("_S").removesuffix("_M") == f"MOSTLY_{each.tensor}"
        assert each.file_type.endswith("_M") == (each.careful is not None)
        assert set(each.types) <= set(formats.QUANTIZED_TYPES) or each.name == formats.REFERENCE
        assert each.bits < each.most_bits
        assert each.most_bits > formats.BITS[formats.TABLE_TYPE]  # the tables of a small model are most of it


def test_places_and_colours_are_each_their_own():
    for of in ("shelf", "place"):
        assert len({getattr(each, of) for each in formats.FORMATS.values()}) == len(formats.FORMATS)
    assert len({each.path for each in formats.GGUF.values()}) == len(formats.GGUF)
    assert len({each.css for each in formats.GGUF.values()}) == len(formats.GGUF)
    assert len({colour for each in formats.GGUF.values() for colour in each.colours}) == 2 * len(formats.GGUF)


def test_files_of_finished_runs_and_versions_stay_where_they_are():
    places = {each.name: (each.step, each.path, each.place) for each in formats.FORMATS.values()}
    assert [places[name] for name in ("merged", "bf16", "q8_0", "q4_0", "adapter", "tuned")] == [
        ("merge", "model/config.json", "merged/config.json"),
        ("quantize", "bf16/model.gguf", "quantized/bf16/model.gguf"),
        ("quantize", "q8_0/model.gguf", "quantized/q8_0/model.gguf"),
        ("quantize", "q4_0/model.gguf", "quantized/q4_0/model.gguf"),
        ("train", "adapter/adapter_model.safetensors", "adapter/adapter_model.safetensors"),
        ("train", "tuned/tuned.json", "tuned/tuned.json"),
    ]
    for name, each in formats.GGUF.items():
        assert places[name] == ("quantize", f"{name}/model.gguf", f"quantized/{name}/model.gguf") == (
            "quantize", each.path, each.place,
        )  # fmt: skip
    assert QuantizeConfig().formats == ("q8_0", "q4_0")
    assert EvaluateConfig().targets == ("base", "tuned", "q8_0", "q4_0")
    assert RegisterConfig().artifacts == ("adapter", "q8_0", "q4_0")


def texts(path: Path) -> list[str]:
    """Every string of a file that is no docstring, parts of f-strings included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
    return [node.value for node in constants if isinstance(node.value, str)]


def test_no_other_file_lists_formats():
    quantized = [each for each in formats.GGUF.values() if each.tensor in formats.QUANTIZED_TYPES and not each.mixed]
    names = "|".join(re.escape(name) for each in quantized for name in (each.name, each.tensor))
    listed = re.compile(rf"(?<![\w-])({names}|MOSTLY_\w+|{re.escape(formats.GGUF_FILE)})(?![\w-])")
    assert len(SOURCES) > 300
    assert not [(path, text) for path in SOURCES for text in texts(path) if listed.search(text)]


ADDED = """
import sys, types
from pathlib import Path
import gemma_ops.family
source = Path({table!r}).read_text(encoding="utf-8")
for old, new in (
    ('"iq4_xs", "mixed"]', '"iq4_xs", "q5_1"]'),
    ('"IQ4_XS"]', '"IQ4_XS", "Q5_1"]'),
    ('"IQ4_XS": 4.25', '"IQ4_XS": 4.25, "Q5_1": 6.0'),
    ('"IQ4_XS": 256', '"IQ4_XS": 256, "Q5_1": 32'),
    ('    Format("adapter"',
     '    _gguf("q5_1", "Q5_1", "MOSTLY_Q5_1", "t-q51", ("#123456", "#abcdef"), default=True),\\n    Format("adapter"'),
):
    assert source.count(old) == 1, old
    source = source.replace(old, new)
added = types.ModuleType("gemma_ops.family.formats")
sys.modules[added.__name__] = gemma_ops.family.formats = added
exec(compile(source, "formats", "exec"), added.__dict__)

from gemma_ops.planning import doctor
from gemma_ops.cli import run_summary as summary
from gemma_ops.config import EvaluateConfig, QuantizeConfig, RegisterConfig
from gemma_ops.evaluation import breakeven_inputs
from gemma_ops.words import figures as markup, palette
from gemma_ops.export import gguf_audit, gguf_tensors
from gemma_ops.registry import model_card as card, card_usage as loading, staging
from gemma_ops.targets import spec

assert QuantizeConfig().formats == ("q8_0", "q4_0", "q5_1") == EvaluateConfig().targets[2:]
assert RegisterConfig(artifacts=("q5_1",)).artifacts == ("q5_1",)
assert spec.parse_target("q5_1").kind == "quantized" and "q5_1" in spec._FORMS
assert gguf_tensors.tensor_type("blk.0.ffn_up.weight", (64, 64), "q5_1") == "Q5_1"
assert gguf_tensors.tensor_type("token_embd.weight", (64, 64), "q5_1") == "Q8_0"
assert "Q5_1" in gguf_audit.QUANTIZED_TYPES
sizes = [name for name in breakeven_inputs._LOCAL if name in ("q4_0", "q5_1", "q8_0", "bf16")]
assert sizes == ["q4_0", "q5_1", "q8_0", "bf16"] and breakeven_inputs._LOCAL[:2] == ("tuned", "base")
assert markup.colour("q5_1") == "t-q51" and palette.palette(["q5_1"])["t-q51"] == ("#123456", "#abcdef")
assert "q5_1/kl" in summary._SHOWN["quantize"]
made = Path({made!r})
(made / "q5_1").mkdir()
(made / "q5_1/model.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
assert list(staging.select_files(RegisterConfig(artifacts=("q5_1",)), quantized=made)) == ["quantized/q5_1/model.gguf"]
files = {{"quantized/q5_1/model.gguf": {{}}}}
words = loading.loading({{"name": "m", "files": files, "adapter": None}}, card.carried_files({{"files": files}}))
assert "q5_1 in llama.cpp" in words
"""


def test_a_format_added_to_the_table_is_known_everywhere(tmp_path):
    code = ADDED.format(table=str(TABLE), made=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
