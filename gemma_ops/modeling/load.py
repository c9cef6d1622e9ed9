"""Loading a Gemma 4 checkpoint so that what is in memory is what is in the file.

Three things go silently wrong elsewhere and are made impossible here. A text class applied to an official checkpoint
loads random weights and only logs it: we load the class the checkpoint names, drop the vision and audio towers through
its configuration, which leaves every parameter name as it is, and refuse any missing key. A skip list of 4-bit modules
that matches nothing quantizes routers and heads: we compare what became 4-bit with what should have. And the wrapper
class declares that it can't take loss arguments, which makes gradient accumulation average micro-batches of different
length: we say that it can.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from gemma_ops import family
from gemma_ops.data import chat
from gemma_ops.errors import MachineError, ModelError
from gemma_ops.modeling.source import check_shards, read_config

Weights = Literal["bf16", "fp32", "nf4"]
_HEADROOM = 1.15
"""Bytes for a model that answers, over the bytes of its weights."""
_TOWERS = re.compile(r"(^|\.)(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder|audio_embedder)\.")
_SHARED = re.compile(r"\.layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.")
"""Keys of layers that take keys and values from an earlier layer: official files still carry them."""


def pick_device(name: str, whole: Path | None = None) -> str:
    """`auto` becomes `cuda` where there is a GPU, and, with `whole`, where that checkpoint fits into its free memory
    unquantized: a base tuned in 4 bits may not, and then it answers from the CPU, slowly. Raises MachineError when a GPU
    is asked for and absent.
    """
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        needed = sum(shard.stat().st_size for shard in check_shards(whole)) * _HEADROOM if whole else 0
        return "cuda" if needed < torch.cuda.mem_get_info()[0] else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "machine.device is cuda, and torch sees no GPU", "set machine.device=auto, or install a CUDA build of torch"
        )
    return name


def load_model(
    folder: Path, *, weights: Weights = "bf16", device: str = "cpu", towers: bool = False, sharded: bool = False
) -> Any:
    """Load a checkpoint folder for text, in evaluation mode.

    `sharded` stores 4-bit weights in the model's own number type: FSDP leaves integers whole on every process. `towers` keeps vision and audio where the checkpoint has them. Raises ModelError when a file is missing, when a
    parameter has no value in the file, or when 4-bit quantization did not land exactly where it should.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # what matters of its load report is checked below
    transformers.logging.disable_progress_bar()
    body = read_config(folder)
    check_shards(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    if not towers:
        for part in ("vision_config", "audio_config"):
            if hasattr(config, part):
                setattr(config, part, None)
    architecture = (body.get("architectures") or ["Gemma4ForConditionalGeneration"])[0]
    if not hasattr(transformers, architecture):
        raise ModelError(
            f"{folder} wants the class {architecture}, which transformers {transformers.__version__} lacks",
            "see `gemma-ops doctor`",
        )
    if "quantization_config" in body and weights != "nf4":
        raise ModelError(
            f"{folder} is already quantized",
            "start from the bf16 checkpoint: a 4-bit model can't be merged or saved again",
        )
    options: dict[str, Any] = {"config": config, "dtype": torch.float32 if weights == "fp32" else torch.bfloat16}
    if weights == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.bfloat16 if sharded else torch.uint8,
            llm_int8_skip_modules=list(family.SKIP_4BIT),
        )
    if (device != "cpu" and not sharded) or weights == "nf4":  # what is sharded goes to the device in parts
        options["device_map"] = {"": device}
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True, **options)
    _check_keys(folder, model, info)
    if weights == "nf4":
        check_4bit(model)
    model.accepts_loss_kwargs = True
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's `tokenizers.Tokenizer`. Raises ModelError when there is none."""
    return chat.load_tokenizer(folder)


def _check_keys(folder: Path, model: Any, info: dict[str, Any]) -> None:
    tied = {"lm_head.weight"} if model.config.get_text_config().tie_word_embeddings else set()
    missing = sorted(set(info["missing_keys"]) - tied)
    unexpected = sorted(key for key in info["unexpected_keys"] if not _TOWERS.search(key) and not _SHARED.search(key))
    mismatched = sorted(map(str, info.get("mismatched_keys") or ()))
    for what, keys in (
        ("has no value for", missing),
        ("holds, without a place in the model,", unexpected),
        ("has another shape for", mismatched),
    ):
        if keys:
            raise ModelError(
                f"{folder} {what} {len(keys)} parameters, the first: {keys[0]}",
                "the weights and config.json do not belong together: fetch the checkpoint again, or export it with `gemma-ops quantize`",
            )


def check_4bit(model: Any) -> dict[str, int]:
    """Compare the 4-bit modules of a loaded model with what should be 4-bit: the language model's attention and MLP.

    Returns bytes by kind. Raises ModelError naming the first module on the wrong side: a skip pattern that matches
    nothing is otherwise silent.
    """
    import bitsandbytes as bnb
    import torch

    wanted = re.compile(family.LORA_TARGETS)
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        is_4bit = isinstance(module, bnb.nn.Linear4bit)
        should = isinstance(module, torch.nn.Linear) and bool(wanted.fullmatch(name))
        if is_4bit != should:
            raise ModelError(
                f"{name} is {'4-bit and must not be' if is_4bit else 'not 4-bit and should be'}",
                "this combination of transformers and bitsandbytes is unknown to gemma-ops: see `gemma-ops doctor`",
            )
    for _, parameter in model.named_parameters():
        kind = "nf4" if parameter.__class__.__name__ == "Params4bit" else str(parameter.dtype).removeprefix("torch.")
        sizes[kind] = sizes.get(kind, 0) + parameter.numel() * parameter.element_size()
    return sizes
