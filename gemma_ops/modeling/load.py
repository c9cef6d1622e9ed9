"""Loading of a Gemma 4 checkpoint so that what is in memory is what is in the file.

Three things go silently wrong elsewhere and are made impossible here. A text class applied to an official checkpoint
loads random weights and only logs it: we load the class the checkpoint names, drop the vision and audio towers through
its configuration, which leaves every parameter name as it is, and refuse any missing key. A "4-bit" model keeps its
experts in bf16 and has its routers quantized: we quantize what should be (`streaming`) and count what is (`audit`). And
the wrapper class declares that it can't take loss arguments, which makes gradient accumulation average micro-batches of
different length: we say that it can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from gemma_ops.data import chat
from gemma_ops.errors import MachineError, ModelError
from gemma_ops.family import Shape
from gemma_ops.modeling.checkpoint_source import check_shards, read_model_config
from gemma_ops.runs import journal

Weights = Literal["bf16", "fp32", "nf4"]
Place = Literal["auto", "device", "host"]
_HEADROOM = 1.15
"""Bytes for a model that answers, over the bytes of its weights."""


def engine_facts(device: str) -> tuple[str, int | None]:
    """Name a device (`cpu` or `cuda`) as a reader knows it, with the CPU threads that torch computes with; None on a
    GPU."""
    import torch

    return (torch.cuda.get_device_name(), None) if device == "cuda" else ("CPU", torch.get_num_threads())


def pick_device(name: str, whole: Path | None = None) -> str:
    """Resolve `auto` to `cuda` where there is a GPU and, with `whole`, where that checkpoint fits into its free memory
    unquantized: a base tuned in 4 bits may not, and then it answers from the CPU, slowly. Raises MachineError when a
    GPU is asked for and absent.
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
    folder: Path,
    *,
    weights: Weights = "bf16",
    device: str = "cpu",
    towers: bool = False,
    ple: Place = "auto",
    sharded: bool = False,
    packed: bool = False,
) -> Any:
    """Load a checkpoint folder for text, in evaluation mode.

    `weights`: attention, MLP and experts of the language model in 4 bits with `nf4`; everything else is bf16 then.
    `towers` keeps vision and audio where the checkpoint has them. `ple`: where the per-layer embedding table lies (E2B,
    E4B); `auto` takes the host when the device is a GPU. `sharded` is for a model that FSDP will spread: 4-bit weights
    are stored in the model's own number type, because integers stay whole on every process, the table is a parameter
    like any other, and what is dense waits in main memory. `packed` takes a checkpoint too whose weights alone are
    rounded (w4a16), as the bf16 weights that engines multiply with. What is in memory is in the journal and in
    `model.audit`.

    Raises ModelError when a file is missing, when a parameter has no value in the file, or when what is in memory is
    not, to the byte, what the configuration says.
    """
    import torch
    import transformers

    from gemma_ops.modeling import streaming
    from gemma_ops.modeling.audit import audit_model
    from gemma_ops.modeling.packed_weights import weights_alone

    transformers.logging.set_verbosity_error()  # what matters of what it would say is checked here
    body = read_model_config(folder)
    packed = packed and weights_alone(body)
    if "quantization_config" in body and not packed:
        raise ModelError(
            f"{folder} is already quantized",
            "start from the bf16 checkpoint: a 4-bit model can't be merged or saved again",
        )
    files = streaming.streamed_entries(folder, body["model_type"], packed=packed)
    config = transformers.AutoConfig.from_pretrained(folder)
    if packed:
        del config.quantization_config
    if not towers:
        for part in ("vision_config", "audio_config"):
            if hasattr(config, part):
                setattr(config, part, None)
    architecture = (body.get("architectures") or ["Gemma4ForConditionalGeneration"])[0]
    if not hasattr(transformers, architecture):
        raise ModelError(
            f"{folder} needs the class {architecture}, which transformers {transformers.__version__} lacks",
            "see `gemma-ops doctor`",
        )
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    model = streaming.build_streamed(getattr(transformers, architecture), config, dtype)
    streaming.check_streamed(folder, model, files)
    if weights == "nf4":
        streaming.quantizable(model, torch.bfloat16 if sharded else torch.uint8)
    if not sharded and (ple == "host" or (ple == "auto" and device.startswith("cuda"))):
        streaming.table_on_host(model, files, dtype)
    streaming.fill_streamed(model, files, "cpu" if sharded and weights != "nf4" else device, dtype)
    model.audit = audit_model(model, Shape.from_config(body), weights)
    for line in model.audit:
        journal.record(component=line.component, kind=line.kind, parameters=line.parameters, bytes=line.bytes)
    model.is_loaded_in_4bit = weights == "nf4"  # PEFT puts its adapters on 4-bit linears only where this says so
    model.accepts_loss_kwargs = True
    model.name_or_path = str(folder)
    if (folder / "generation_config.json").exists():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model


def put_on(model: Any, changed: Path, base: Path) -> Any:
    """Put a training's result on a loaded `base`: the adapter in the folder `changed`, or its changed tensors.

    Raises ModelError where that doesn't belong to this base.
    """
    from gemma_ops.modeling import adapters, full

    return (
        full.load_full(model, changed, base)
        if (changed / full.RECORD).is_file()
        else adapters.load_adapter(model, changed)
    )


def load_tokenizer(folder: Path) -> Any:
    """Load the checkpoint's `tokenizers.Tokenizer`. Raises ModelError when there is none."""
    return chat.load_tokenizer(folder)
