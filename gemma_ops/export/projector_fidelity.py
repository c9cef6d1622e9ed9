"""The towers in the step `quantize`: an mmproj file, audited, and compared with transformers on drawn images and
sounds.

Two things are compared: what a tower says of an image or a sound, and the distributions of the text after it, the
greedy reply of transformers included. What llama.cpp's server reads as transformers does is named in the report; the
rest is refused by targets and by the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gemma_ops.config import MachineConfig, Privacy, QuantizeConfig
from gemma_ops.data import chat
from gemma_ops.data.media_files import FOLDER, MediaShelf
from gemma_ops.data.parts import media_of
from gemma_ops.data.prompt_record import read_prompting
from gemma_ops.errors import GateError, ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.fidelity import logits_divergence
from gemma_ops.export.file_fidelity import PARITY, parity_weights
from gemma_ops.export.folder import check_room
from gemma_ops.export.gguf_projector import audit_projector, write_projector
from gemma_ops.export.projector_tensors import has_towers, plan_projector
from gemma_ops.export.prompts import manner_of
from gemma_ops.family.formats import PROJECTOR_FILE, PROJECTOR_MADE, ProjectorType
from gemma_ops.family.media import RATE, Senses
from gemma_ops.modeling import generate
from gemma_ops.modeling.decoding import Drawing, ReplyInMemory
from gemma_ops.modeling.llamacpp import threads_for
from gemma_ops.modeling.llamacpp_library import GgufLogits
from gemma_ops.modeling.llamacpp_media import GgufMedia
from gemma_ops.modeling.llamacpp_shown import ShownPrompt, image_reading, media_file, shown_arrays
from gemma_ops.modeling.load import load_model, load_tokenizer, pick_device
from gemma_ops.modeling.media_inputs import Perceiver, Seen
from gemma_ops.privacy.classes import record_learned
from gemma_ops.runs import journal

_SIZES = ((320, 240), (150, 400), (64, 64))
"""Width and height of the drawn images."""
_SECONDS = (0.7, 2.0)
_REPLY = 12
"""Tokens of the reply on which distributions are compared."""
_WORST = 0.1
"""Largest difference of what a tower says, of its length. 16-bit activations alone make 0.01."""


@dataclass(frozen=True)
class _Question:
    seen: Seen
    shown: ShownPrompt


def projector_type(settings: QuantizeConfig, source: MergedCheckpoint, data: Path | None) -> ProjectorType | None:
    """Return how the towers are stored; None where they are left out. Raises ModelError where there are none to
    store."""
    asked, there = settings.mmproj, has_towers(source)
    if asked == "auto":
        shows = data is not None and (data / FOLDER).is_dir()
        return "bf16" if there and shows and settings.formats else None
    if asked != "none" and not there:
        raise ModelError(
            f"{source.folder} has no vision or audio tower", "leave quantize.mmproj out, or export another checkpoint"
        )
    return None if asked == "none" else asked


def make_projector(
    out: Path,
    source: MergedCheckpoint,
    kind: ProjectorType,
    machine: MachineConfig,
    *,
    reference: Path,
    learned: Privacy,
) -> dict[str, Any]:
    """Write `out/mmproj`, and compare it with transformers beside the file `reference`; return what `report.json` says
    of it. Raises ModelError for towers that llama.cpp computes otherwise, GateError where it disagrees."""
    plan = plan_projector(source, kind)
    file = out / PROJECTOR_MADE / PROJECTOR_FILE
    if not file.exists():
        check_room(out, sum(4 * one.source.parameters for one in plan.tensors if one.source))
        write_projector(source, plan, file.parent, learned=learned)
    record_learned(file.parent, learned, [f"model: {learned}"])
    report = {"type": kind, **audit_projector(file, plan)}
    senses = Senses.read(source.folder)
    model = load_model(
        source.folder, weights=parity_weights(source), device=pick_device(machine.device, source.folder), towers=True
    )
    for media in senses.kinds:
        asked = [_question(source, media, number) for number in range(len(_SIZES if media == "image" else _SECONDS))]
        apart = media == "image" and image_reading(source.config) == "otherwise"
        report[media] = found = _compare(model, asked, source, reference, file, apart=apart, machine=machine)
        journal.record(event="towers", media=media, **found)
        _check(media, found, source)
    report["served"] = list(Senses.read(file.parent).kinds)
    return report


def projector_metrics(report: dict[str, Any]) -> dict[str, float]:
    """Return the step's metrics of a report of `make_projector`."""
    found = {"mmproj/mb": report["file_bytes"] / 1e6}
    for media in ("image", "audio"):
        found |= {f"mmproj/{media}_{name}": value for name, value in report.get(media, {}).items()}
    return found


def _question(source: MergedCheckpoint, media: str, number: int) -> _Question:
    """Return a question about a drawn image or sound, as both engines see it."""
    perceiver, tokenizer = Perceiver(source.folder), load_tokenizer(source.folder)
    drawn = media_file(_picture(number) if media == "image" else _sound(number))
    shelf = MediaShelf(None, perceiver.senses)
    content = [{"type": media, "source": drawn}, {"type": "text", "text": "Describe this in one sentence."}]
    messages = shelf.store([{"role": "user", "content": content}])
    manner = manner_of(source.folder, read_prompting(source.folder)).of(messages)
    encoded = chat.prompt(tokenizer, messages, None, **{**manner, "senses": perceiver.senses})
    types, parts = encoded.types(), media_of(messages)
    arrays = shown_arrays(parts, shelf.found, perceiver.senses)
    return _Question(perceiver.see(parts, shelf.found, types), ShownPrompt(encoded.ids, types, arrays))


def _picture(number: int) -> np.ndarray:
    """Return a drawn image: a slope of colours with noise and a bright square, (rows, columns, 3) uint8."""
    width, height = _SIZES[number]
    random = np.random.default_rng(number)
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, 255 - across], axis=-1) + random.normal(0, 12, (height, width, 3))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = random.integers(0, 255, 3)
    found: np.ndarray = pixels.clip(0, 255).astype(np.uint8)
    return found


def _sound(number: int) -> np.ndarray:
    """Return a drawn sound: a rising tone with noise, (samples,) float32 at 16 kHz."""
    time = np.arange(int(_SECONDS[number] * RATE)) / RATE
    noise = np.random.default_rng(number).normal(0, 0.02, len(time))
    return np.asarray(0.4 * np.sin(2 * np.pi * (300 + 400 * time) * time) + noise, dtype=np.float32)


def _compare(
    model: Any,
    asked: list[_Question],
    source: MergedCheckpoint,
    reference: Path,
    file: Path,
    *,
    apart: bool,
    machine: MachineConfig,
) -> dict[str, float]:
    """Return how far llama.cpp is from transformers on some questions; of the towers alone where it reads what they
    say `apart` from transformers' way."""
    budget = senses.image.budget if (senses := Senses.read(source.folder)).image else None
    stops, threads = set(generate.stop_ids(model)), threads_for(reference, machine.workers)
    longest = max(len(one.shown.ids) for one in asked) + _REPLY
    errors, pairs = [], []
    with (
        GgufLogits(reference, context=longest, threads=threads, together=budget or 0) as gguf,
        GgufMedia(gguf, file, budget=budget, threads=threads) as towers,
    ):
        for one in asked:
            expected, found = _said(model, one.seen), towers.embeddings(one.shown.shown[0])
            errors.append(_error(expected, found))
            if not apart and expected.shape == found.shape:
                prompt = one.shown.longer(_reply(model, one, stops))
                pairs.append((_after(_logits(model, prompt, one.seen), prompt), _read(towers, prompt)))
    report = {"tower_error": float(f"{max(errors):.4g}")}
    if pairs:
        every = logits_divergence(pairs)
        report |= {"kl": float(f"{every.kl:.4g}"), "top1": round(every.top1, 4), "positions": every.positions}
    return report


def _error(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the difference of two towers' words, of their length; infinite where they differ in number."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(expected - found) / np.linalg.norm(expected))


def _said(model: Any, seen: Seen) -> np.ndarray:
    """Return what transformers' tower says of the one image or sound, (soft tokens, width) float32."""
    with torch.inference_mode():
        if seen.pictures:
            pixels, places = (one[None].to(model.device) for one in seen.pictures[0])
            out = model.model.get_image_features(pixels, places).pooler_output
        else:
            sound = seen.sounds[0][None].to(model.device)
            mask = torch.ones(sound.shape[:2], dtype=torch.bool, device=model.device)
            out = model.model.get_audio_features(sound, mask).pooler_output
    first = out[0] if isinstance(out, tuple | list) or out.ndim == 3 else out
    return np.asarray(first.float().cpu())


def _reply(model: Any, one: _Question, stops: set[int]) -> list[int]:
    writing = ReplyInMemory(model, one.shown.ids, _REPLY, stops, Drawing(), one.seen)
    found: list[int] = []
    while len(found) < _REPLY:
        drawn = writing.step()
        found.append(drawn.id)
        if drawn.end:
            break
    return found


def _logits(model: Any, prompt: ShownPrompt, seen: Seen) -> np.ndarray:
    longer = Seen(list(prompt.types), seen.pictures, seen.sounds)
    given = {"input_ids": torch.tensor([prompt.ids]), **generate.shown_arguments([longer], len(prompt.ids))}
    with torch.inference_mode():
        logits = model(**{key: value.to(model.device) for key, value in given.items()}, use_cache=False).logits[0]
    return np.asarray(logits.float().cpu())


def _after(logits: np.ndarray, prompt: ShownPrompt) -> np.ndarray:
    """Return the logits of text after what is shown."""
    return logits[_last(prompt) :]


def _read(towers: GgufMedia, prompt: ShownPrompt) -> np.ndarray:
    return np.concatenate(list(towers.read_logits(prompt.ids, prompt.types, prompt.shown)))[
        _last(prompt) - len(prompt.ids) :
    ]


def _last(prompt: ShownPrompt) -> int:
    """Return the place of the first token after the last soft one."""
    return 1 + max(place for place, kind in enumerate(prompt.types) if kind)


def _check(media: str, found: dict[str, float], source: MergedCheckpoint) -> None:
    worst_kl, worst_top1 = PARITY[parity_weights(source)]
    if found["tower_error"] <= _WORST and found.get("kl", 0.0) <= worst_kl and found.get("top1", 1.0) >= worst_top1:
        return
    raise GateError(
        f"llama.cpp and transformers disagree about the same {media}: tower {found['tower_error']:.3g} apart (at most "
        f"{_WORST}), kl {found.get('kl', 0.0):.4f} (at most {worst_kl}), top-1 {found.get('top1', 1.0):.3f} (at least "
        f"{worst_top1})",
        "serve images and sounds with transformers or vLLM, and leave the towers out: --set quantize.mmproj=none",
    )
