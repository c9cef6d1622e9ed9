"""The job that quantizes a checkpoint with llm-compressor.

Three things go wrong by default on Gemma 4. The sequential pipeline, which shows rows to one layer after another, fails
on layers that take keys and values from an earlier one: there rows pass the whole model (`pipeline="basic"`). Experts
are parameters of three dimensions, and whatever looks for linear layers leaves nine tenths of a mixture as they were:
they are taken apart while the model is loaded (`load_context`), or the files are quantized without a model
(`model_free_ptq`), which needs memory for one tensor at a time. And embeddings, per-layer tables and projections,
routers and towers must stay as they are."""

from __future__ import annotations

import importlib.metadata
import resource
import time
from pathlib import Path
from typing import Any

from gemma_ops.errors import ModelError

KEPT = (
    "lm_head", "re:.*embed.*", "re:.*per_layer.*", "re:.*router.*", "re:.*vision.*", "re:.*audio.*",
    "re:.*norm.*", "re:.*layer_scalar.*",
)  # fmt: skip
"""Modules and parameters that are not quantized; norms and scalars are named for the route without a model."""
_DAMPING = 0.01


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Quantize `model` by `scheme` into `out`, on `rows` of token ids where the method or the scheme needs them; in
    groups of `group` weights where that is given. Returns versions, seconds and peak memory in bytes."""
    began = time.monotonic()
    if request["model_free"]:
        _without_model(request)
    else:
        _with_model(request)
    names = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    return {
        "versions": {name: importlib.metadata.version(name) for name in names},
        "seconds": time.monotonic() - began,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def load_checkpoint(folder: str, mixture: bool, dtype: str = "bfloat16") -> Any:
    """Load a checkpoint, the experts of a mixture taken apart into linear layers. Raises ModelError where a parameter
    has no value in the files: transformers would make it up, and only log it."""

    import torch
    import transformers
    from llmcompressor.utils import load_context

    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(folder)
    architecture = getattr(transformers, (config.architectures or ["Gemma4ForConditionalGeneration"])[0])
    given = {"dtype": getattr(torch, dtype)}
    if not mixture:
        model, told = architecture.from_pretrained(folder, output_loading_info=True, **given)
        missing = sorted(told["missing_keys"])
    else:  # which doesn't tell what it loaded
        with load_context(architecture):
            model = architecture.from_pretrained(folder, **given)
        missing = _without_value(model, folder) if hasattr(config, "quantization_config") else []
    missing = [name for name in missing if not name.endswith("lm_head.weight")]
    if missing:
        raise ModelError(
            f"{folder} has no value for {len(missing)} parameters, which would be random; the first: {missing[0]}",
            "quantize again; a mixture's experts are read back only taken apart",
        )
    return model.eval()


def _without_value(model: Any, folder: str) -> list[str]:
    """Return the parameters of a model, and what scales them, that no file of the folder holds."""
    from safetensors import safe_open

    there: set[str] = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            there.update(opened.keys())
    modules = {name.rpartition(".")[0] for name in there}
    needed = [name for name, _ in model.named_parameters() if name not in there]
    return sorted(name for name in needed if name.rpartition(".")[0] not in modules)


def _scheme(request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a modifier that say how weights are stored."""
    if not request["group"]:
        return {"targets": "Linear", "scheme": request["scheme"]}
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=request["group"])
    return {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}


def _with_model(request: dict[str, Any]) -> None:
    import torch
    import transformers
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = load_checkpoint(request["model"], request["mixture"])
    kept = [each for each in KEPT if "norm" not in each and "scalar" not in each]
    given: dict[str, Any] = {}
    if request["method"] == "gptq":
        modifier = GPTQModifier(**_scheme(request), ignore=kept, dampening_frac=_DAMPING)
    else:
        modifier = QuantizationModifier(**_scheme(request), ignore=kept)
    if rows := request["rows"]:
        longest = max(map(len, rows))
        given["dataset"] = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
        given["pipeline"] = "basic" if request["shares_kv"] else "sequential"
        given |= {"max_seq_length": longest, "num_calibration_samples": len(rows)}
        given["tokenizer"] = transformers.AutoTokenizer.from_pretrained(request["model"])
    torch.manual_seed(0)
    oneshot(model=model, recipe=[modifier], shuffle_calibration_samples=False, **given)
    model.save_pretrained(request["out"], save_compressed=True, max_shard_size="1000GB")


def _without_model(request: dict[str, Any]) -> None:
    from compressed_tensors.quantization import QuantizationConfig
    from llmcompressor import model_free_ptq

    groups = _scheme(request).get("config_groups")
    how: dict[str, Any] = {"scheme": request["scheme"]}
    if groups:
        how = {"config": QuantizationConfig(config_groups=groups, ignore=list(KEPT))}
    model_free_ptq(
        model_stub=request["model"], save_directory=request["out"], ignore=list(KEPT), max_workers=1, device="cpu",
        **how,
    )  # fmt: skip
