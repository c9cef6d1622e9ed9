"""An mmproj file: the vision and audio towers of a checkpoint as llama.cpp takes them, beside any GGUF file of it.

It lies in a folder of its own with what says how images and sounds become tensors: the checkpoint's processor and the
part of its configuration about towers. Keys and their meaning: llama.cpp's `clip` (gguf-py 0.19, `constants.py`,
classes `Clip`, `ClipVision` and `ClipAudio`; tools/mtmd/clip.cpp).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gemma_ops import family
from gemma_ops.config import Privacy
from gemma_ops.errors import GateError, ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_writer import stream_gguf
from gemma_ops.export.projector_tensors import ProjectorPlan, ProjectorTensor, patch_side
from gemma_ops.family.formats import PROJECTOR_FILE, PROJECTOR_TYPES
from gemma_ops.modeling.llamacpp_shown import image_reading
from gemma_ops.privacy.classes import GGUF_KEY
from gemma_ops.runs.durable import write_json

_PIECE = 1 << 21
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_IDS = ("boi_token_id", "image_token_id", "eoi_token_id", "boa_token_id", "audio_token_id", "eoa_token_index")
_GELU = "gelu_pytorch_tanh"
_CONFORMER = {
    "conv_kernel_size": 5, "attention_chunk_size": 12, "attention_context_left": 13, "attention_context_right": 0,
    "attention_logit_cap": 50.0, "residual_weight": 0.5, "hidden_act": "silu", "rms_norm_eps": 1e-6,
}  # fmt: skip
_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def write_projector(source: MergedCheckpoint, plan: ProjectorPlan, folder: Path, *, learned: Privacy = "any") -> Path:
    """Write `mmproj.gguf` to `folder`, with the processor's settings, and return the file. `learned`, the class of the
    rows behind the model, goes into its header. Raises ModelError for towers that llama.cpp computes otherwise."""
    check_towers(source)

    def describe(writer: Any) -> None:
        _add_metadata(writer, source, plan)
        writer.add_string(GGUF_KEY, learned)

    def data(tensor: ProjectorTensor) -> Iterator[bytes]:
        for piece in _pieces(source, tensor):
            stored = piece.to(_TYPES[tensor.type]).contiguous()
            yield bytes(stored.flatten().view(torch.uint8).numpy().tobytes())

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", _towers_config(source.config), indent=2)
    for name in _PROCESSORS:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    file = folder / PROJECTOR_FILE
    stream_gguf(file, "clip", folder.name, plan.tensors, describe, data)  # last: where it is, all is
    return file


def _towers_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that asking with images and sounds needs. It says nothing of images where
    llama.cpp's server reads their tokens otherwise than transformers: what is not named is refused by whoever asks."""
    text = config.get("text_config") or {}
    kept = ["model_type", "audio_config", *_IDS]
    kept += ["vision_config"] if image_reading(config) == "as trained" else []
    facts = {key: text[key] for key in ("hidden_size", "use_bidirectional_attention") if key in text}
    return {key: config[key] for key in kept if key in config} | {"text_config": facts}


def audit_projector(file: Path, plan: ProjectorPlan) -> dict[str, Any]:
    """Read a file's tensor table, and return its bytes and parameters by type for `report.json`. Raises GateError when
    it is cut short, or a tensor is another than planned."""
    import gguf

    fix = "run the step again with --redo quantize; if it repeats, check the disk"
    try:
        tensors = gguf.GGUFReader(file).tensors
    except (ValueError, IndexError, KeyError) as error:
        raise GateError(f"{file} is cut short or not a GGUF file: {error}", fix) from error
    found = {one.name: (tuple(int(side) for side in reversed(one.shape)), one.tensor_type.name) for one in tensors}
    planned = {one.name: (one.shape, str(one.type)) for one in plan.tensors}
    if odd := sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name)):
        raise GateError(
            f"{file} differs from what was asked in {len(odd)} tensors, first {odd[0]}: "
            f"{found.get(odd[0], 'absent')} instead of {planned.get(odd[0], 'nothing')}",
            fix,
        )
    parameters: dict[str, int] = {}
    for one in tensors:
        parameters[one.tensor_type.name] = parameters.get(one.tensor_type.name, 0) + int(one.n_elements)
    return {"file_bytes": file.stat().st_size, "parameters": dict(sorted(parameters.items()))}


def check_towers(source: MergedCheckpoint) -> None:
    """Raise ModelError where llama.cpp would compute a tower otherwise than the checkpoint says: what it takes for
    granted stands in tools/mtmd/models/gemma4v.cpp and gemma4a.cpp."""
    vision, audio = source.config.get("vision_config") or {}, source.config.get("audio_config") or {}
    found = _granted_unified(audio) if _is_unified(source) else {**_granted_vision(vision), **_granted_audio(audio)}
    for key, (value, granted) in found.items():
        if value != granted:
            raise ModelError(
                f"llama.cpp takes {key}={granted} for granted, and this checkpoint says {value}",
                "serve images and sounds with transformers or vLLM, and leave the towers out: quantize.mmproj=none",
            )


def _granted_vision(vision: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the value of each key that llama.cpp doesn't ask for, with the one that it computes with."""
    heads, width = vision.get("num_attention_heads", 12), vision.get("hidden_size", 768)
    rope = vision.get("rope_parameters") or {}
    return {
        "vision_config.hidden_activation": (vision.get("hidden_activation", _GELU), _GELU),
        "vision_config.num_key_value_heads": (vision.get("num_key_value_heads", heads), heads),
        "vision_config.head_dim": (vision.get("head_dim", 64), width // heads),
        "vision_config.rope_parameters.rope_theta": (rope.get("rope_theta", 100.0), 100.0),
    }


def _granted_audio(audio: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {f"audio_config.{key}": (audio.get(key, usual), usual) for key, usual in _CONFORMER.items()}


def _granted_unified(audio: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {"audio_config.audio_embed_dim": (audio.get("audio_embed_dim", 640), 640)}


def _is_unified(source: MergedCheckpoint) -> bool:
    return "unified" in str(source.config.get("model_type"))


def _add_metadata(writer: Any, source: MergedCheckpoint, plan: ProjectorPlan) -> None:
    """Write what llama.cpp must know of the towers to a `gguf.GGUFWriter`."""
    import gguf

    key = family.identify(source.config)
    writer.add_type("mmproj")
    writer.add_name(f"Gemma 4 {key}" if key else "Gemma 4")
    writer.add_file_type(gguf.LlamaFileType[PROJECTOR_TYPES[plan.type][1]])
    unified = _is_unified(source)
    vision, audio = source.config.get("vision_config"), source.config.get("audio_config")
    writer.add_bool("clip.has_vision_encoder", vision is not None)
    writer.add_bool("clip.has_audio_encoder", audio is not None)
    if vision is not None:
        _add_vision(writer, vision, plan, unified, int(source.text["hidden_size"]))
    if audio is not None:
        _add_audio(writer, audio, plan, unified, int(source.text["hidden_size"]))


def _add_vision(writer: Any, vision: dict[str, Any], plan: ProjectorPlan, unified: bool, width: int) -> None:
    patches = next(one for one in plan.tensors if one.name == "v.patch_embd.weight")
    pool = int(vision.get("pooling_kernel_size", 3))
    side = patch_side(patches.shape[-1]) // pool if unified else patches.shape[-1]
    layers = _layers(plan, "v")
    writer.add_clip_vision_projector_type("gemma4uv" if unified else "gemma4v")
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(224)  # llama.cpp asks for it, and scales images by the patches that fit the budget
    writer.add_vision_patch_size(side)
    writer.add_vision_embedding_length(patches.shape[0])
    writer.add_vision_feed_forward_length(0 if unified else int(vision.get("intermediate_size", 3072)))
    writer.add_vision_block_count(layers)
    writer.add_vision_head_count(0 if unified else int(vision.get("num_attention_heads", 12)))
    writer.add_vision_attention_layernorm_eps(float(vision.get("rms_norm_eps", 1e-6)))
    writer.add_vision_projector_scale_factor(pool)
    writer.add_vision_image_mean([0.0, 0.0, 0.0])
    writer.add_vision_image_std([1.0, 1.0, 1.0])
    writer.add_vision_use_gelu(True)


def _add_audio(writer: Any, audio: dict[str, Any], plan: ProjectorPlan, unified: bool, width: int) -> None:
    hidden = int(audio.get("audio_embed_dim", 640) if unified else audio.get("hidden_size", 1024))
    writer.add_clip_audio_projector_type("gemma4ua" if unified else "gemma4a")
    writer.add_audio_projection_dim(width)
    writer.add_audio_embedding_length(hidden)
    writer.add_audio_feed_forward_length(0 if unified else 4 * hidden)
    writer.add_audio_block_count(_layers(plan, "a"))
    writer.add_audio_head_count(0 if unified else int(audio.get("num_attention_heads", 8)))
    writer.add_audio_attention_layernorm_eps(float(audio.get("rms_norm_eps", 1e-6)))
    writer.add_audio_num_mel_bins(_mel_bins(plan))


def _layers(plan: ProjectorPlan, letter: str) -> int:
    return len({one.name.split(".")[2] for one in plan.tensors if one.name.startswith(f"{letter}.blk.")})


def _mel_bins(plan: ProjectorPlan) -> int:
    """Return the bins of the spectrogram: the first projection reads the second convolution's channels at a quarter of
    them. Of the published size where there is no spectrogram."""
    shapes = {one.name: one.shape for one in plan.tensors}
    if "a.conv1d.1.weight" not in shapes:
        return 128
    return 4 * shapes["a.input_projection.weight"][1] // shapes["a.conv1d.1.weight"][0]


def _pieces(source: MergedCheckpoint, tensor: ProjectorTensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's numbers in the file's order, as pieces of whole rows where the order of rows is the
    checkpoint's."""
    assert tensor.source is not None
    if tensor.change == "axes first":
        yield source.read(tensor.source.name).permute(1, 0, 2)
        return
    for rows in source.slices(tensor.source.name, _PIECE):
        if tensor.change == "softplus":
            yield torch.nn.functional.softplus(rows.float())
        elif tensor.change in ("channels first", "columns channels first"):
            side = patch_side(rows.shape[-1])
            yield rows.reshape(-1, side * side, 3).transpose(1, 2)
        else:
            yield rows
