"""The job that quantizes float graphs by a recipe and packs them for LiteRT-LM, with everything said that a runtime
would else guess: the checkpoint's own tokenizer, its template, stop tokens, the markers of thoughts and of tool calls,
float32 activations.

litert-torch's own bundle replaces a tokenizer it can't read by another one without a word, and knows the markers only
from a map of special tokens that our checkpoints have as a list. Bundles have a random number and the time in them:
here both come from the content, so the same graphs give the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
import time
import uuid
from pathlib import Path
from typing import Any

from gemma_ops.errors import ModelError
from gemma_ops.toolenvs.jobs.edge_export import EXECUTOR, GRAPHS

_KINDS = {
    "model": "tf_lite_prefill_decode", "embedder": "tf_lite_embedder",
    "per_layer_embedder": "tf_lite_per_layer_embedder",
}  # fmt: skip
"""Section of each graph in a file, as recipes name it."""
TABLES8 = "gemma4_mixed48_b32_tables8"
_WHEN = "1970-01-01T00:00:00+00:00"
MARKERS = {
    "code_fence_start": "<|tool_call>", "code_fence_end": "<tool_call|>", "function_response_start": "<|tool_response>",
    "open_quote": '<|"|>', "close_quote": '<|"|>',
}  # fmt: skip
"""Markers of tool calls in Gemma 4's metadata."""
_THOUGHT, _THOUGHT_END = "<|channel>thought\n", "<channel|>"


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write `out`, a file for LiteRT-LM, from the float graphs in `graphs` by `recipe` (empty: as they are), for the
    checkpoint `model` with room for `context` tokens; `quantized` keeps the quantized graphs. Returns bytes,
    seconds."""
    began = time.monotonic()
    graphs = Path(request["graphs"])
    if request["recipe"]:
        graphs = quantize_graphs(graphs, Path(request["quantized"]), request["recipe"])
    out, executor = Path(request["out"]), Path(request["graphs"]) / EXECUTOR
    write_bundle(graphs, executor, Path(request["model"]), request["context"], out)
    return {"bytes": out.stat().st_size, "seconds": time.monotonic() - began}


def quantize_graphs(graphs: Path, out: Path, recipe: str) -> Path:
    """Quantize each float graph by a recipe of ai-edge-quantizer, and return the folder."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    out.mkdir(parents=True, exist_ok=True)
    found = _recipe(recipes, recipe)
    for name in GRAPHS:
        own = found[_KINDS[name]] if isinstance(found, dict) else found
        made = quantizer.Quantizer(str(graphs / f"{name}.tflite"))
        made.load_quantization_recipe(own)
        made.quantize().export_model(str(out / f"{name}.tflite"), overwrite=True)
    return out


def _recipe(recipes: Any, name: str) -> Any:
    """Return a recipe by its name. `TABLES8` is ours: 4 bits in blocks for what is multiplied with, 8 for per-layer
    projections, and 8 for the embedding and the per-layer table, which the recipes for Gemma 4 of ai-edge-quantizer
    store in 4 bits."""
    if name != TABLES8:
        return getattr(recipes, name)()
    tables = recipes.weight_only_wi8_afp32()
    return {
        **recipes.gemma4_mixed48_b32(), _KINDS["embedder"]: tables, _KINDS["per_layer_embedder"]: tables,
    }  # fmt: skip


def write_bundle(graphs: Path, executor: Path, model: Path, context: int, out: Path) -> None:
    """Pack graphs, tokenizer and metadata. Raises ModelError for a checkpoint without tokenizer.json or template."""
    from litert_lm_builder import litertlm_builder

    tokenizer, template = model / "tokenizer.json", model / "chat_template.jinja"
    for file in (tokenizer, template):
        if not file.is_file():
            raise ModelError(f"{model} has no {file.name}", "export the checkpoint as `merge` wrote it")
    metadata = out.with_suffix(".metadata")
    metadata.write_bytes(edge_metadata(model, context).SerializeToString(deterministic=True))
    litertlm_builder.populate_system_metadata = _from_content(litertlm_builder, [metadata, tokenizer, *_files(graphs)])
    builder = litertlm_builder.LitertLmFileBuilder()
    builder.add_system_metadata(_text(litertlm_builder, "Authors", "gemma-ops"))
    builder.add_llm_metadata(str(metadata))
    if executor.is_file():
        builder.add_executor_metadata(str(executor))
    builder.add_hf_tokenizer(str(tokenizer))
    for name in GRAPHS:
        kind = litertlm_builder.TfLiteModelType(_KINDS[name])
        builder.add_tflite_model(str(graphs / f"{name}.tflite"), kind, prefer_activation_type="fp32")
    temporary = out.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        builder.build(stream)
    temporary.replace(out)
    metadata.unlink()


def edge_metadata(model: Path, context: int) -> Any:
    """Return what a runtime must know of a checkpoint, as LiteRT-LM's message `LlmMetadata`."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2

    ids = {token["content"]: token["id"] for token in _json(model / "tokenizer.json")["added_tokens"]}
    found = llm_metadata_pb2.LlmMetadata()
    found.start_token.token_ids.ids.append(ids["<bos>"])
    found.pad_token.token_ids.ids.append(ids["<pad>"])
    generation = _json(model / "generation_config.json")
    stops = generation.get("eos_token_id") or []
    for stop in [stops] if isinstance(stops, int) else stops:
        found.stop_tokens.add().token_ids.ids.append(stop)
    found.max_num_tokens = context
    found.jinja_prompt_template = runtime_template((model / "chat_template.jinja").read_text(encoding="utf-8"))
    family = llm_model_type_pb2.Gemma4(**{key: text for key, text in MARKERS.items() if text in ids})
    found.llm_model_type.CopyFrom(llm_model_type_pb2.LlmModelType(gemma4=family))
    channel = found.channels.add()
    channel.channel_name, channel.start, channel.end = "thought", _THOUGHT, _THOUGHT_END
    return found


def runtime_template(text: str) -> str:
    """Return a chat template as the runtime must have it to ask what the model was trained on: without transformers'
    own block; with `x["key"]` for `x.get("key")`, which MiniJinja doesn't know and which says the same, since both give
    nothing for a key that is absent; and without the space after a system turn that is given in parts, as the runtime
    gives every one, while training gives it as a text."""
    text = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)
    text = re.sub(r"\.get\(\s*(['\"][^'\"]+['\"])\s*\)", r"[\1]", text)
    return re.sub(r"(\['text'\]\s*\|\s*trim\s*\)?)\s*\+\s*' '", r"\1", text)


def _files(graphs: Path) -> list[Path]:
    return [graphs / f"{name}.tflite" for name in GRAPHS]


def _text(builder: Any, key: str, value: str) -> Any:
    return builder.Metadata(key=key, value=value, dtype=builder.DType.STRING)


def _from_content(builder: Any, files: list[Path]) -> Any:
    """Return what the builder fills a file's own metadata with: a number that is the content's, and no time."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    number = str(uuid.UUID(bytes=digest.digest()[:16], version=4))

    def fill(known: list[Any]) -> list[Any]:
        kept = [each for each in known if each.key not in ("uuid", "creation_timestamp")]
        return [*kept, _text(builder, "uuid", number), _text(builder, "creation_timestamp", _WHEN)]

    return fill


def _json(file: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return body
