"""The job that converts a Gemma 4 to float graphs for LiteRT-LM, once, whatever recipes they are quantized by later.

What litert-torch 0.10.0 does wrong on Gemma 4 is put right here, each by one function: it imports a package that it
doesn't depend on (`schema_stand_in`), its decode graph leaves out the final softcap of the logits (`put_softcap`), and
its own bundle has another tokenizer and lacks the markers of tool calls (both are written by `edge_bundle`, and its
bundle is thrown away). `litert_lm_model_type_override` is never used: it would skip what is known of Gemma 4.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import resource
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemma_ops.errors import ModelError

GRAPHS = ("model", "embedder", "per_layer_embedder")
"""Graphs of a Gemma 4 with per-layer embeddings: layers and head, the embedding, the per-layer table."""
EXECUTOR = "executor_metadata.pb"
PREFILL = 128
"""Tokens of a prompt that the layers read at a time."""
_SCHEMA = "schema_py_generated"


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the float graphs of `model`, with room for `context` tokens, into `out`. Returns versions, seconds and peak
    memory in bytes."""
    import torch._dynamo  # noqa: F401 - before the stand-in, so that nothing takes tensorflow for available
    import transformers

    transformers.logging.set_verbosity_error()
    began = time.monotonic()
    with schema_stand_in():
        from litert_torch.generative.export_hf import export as exporting
    put_softcap()
    out = Path(request["out"])
    exporting.export(
        model=request["model"], output_dir=str(out), task="text_generation", prefill_lengths=[PREFILL],
        cache_length=request["context"], quantization_recipe="", externalize_embedder=True, keep_temporary_files=True,
    )  # fmt: skip
    missing = [name for name in GRAPHS if not (out / f"{name}.tflite").is_file()]
    if missing:
        raise ModelError(
            f"litert-torch wrote no graph {missing[0]} of {request['model']}",
            "this tool converts Gemma 4 with per-layer embeddings: E2B and E4B",
        )
    for file in out.iterdir():
        if file.name not in (*(f"{name}.tflite" for name in GRAPHS), EXECUTOR):
            file.unlink()
    return {
        "versions": edge_versions(),
        "seconds": time.monotonic() - began,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def edge_versions() -> dict[str, str]:
    """Return the versions that decide what a file says."""
    names = ("litert-torch", "litert-lm", "ai-edge-litert", "ai-edge-quantizer", "transformers", "torch")
    return {name: importlib.metadata.version(name) for name in names}


@contextmanager
def schema_stand_in() -> Iterator[None]:
    """Let `tensorflow.lite.python.schema_py_generated` be the copy that ai_edge_litert carries: a module that a model
    of another family imports, from a package that litert-torch doesn't depend on."""
    from ai_edge_litert import schema_py_generated

    names = ("tensorflow", "tensorflow.lite", "tensorflow.lite.python")
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
    sys.modules[f"{names[-1]}.{_SCHEMA}"] = schema_py_generated
    setattr(sys.modules[names[-1]], _SCHEMA, schema_py_generated)
    try:
        yield
    finally:
        for name in (*names, f"{names[-1]}.{_SCHEMA}"):
            sys.modules.pop(name, None)


def put_softcap() -> None:
    """Let the decode graph of Gemma 4 end in its softcap: `cap × tanh(logits / cap)`."""
    import torch
    from litert_torch.generative.export_hf.model_ext.gemma4 import exportable_module

    graph = exportable_module.LiteRTExportableModuleForDecoderOnlyLMGenerateExternalEmbedder
    plain = graph.forward

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        found = plain(self, *arguments, **options)
        if cap := self.model.config.get_text_config().final_logit_softcapping:
            found["logits"] = torch.tanh(found["logits"] / cap) * cap
        return found

    graph.forward = forward
