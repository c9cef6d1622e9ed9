"""Prompts with images and sounds as llama.cpp takes them: pixels and samples as the checkpoint's processor makes them,
and the same tokens of text around them.

llama.cpp scales an image by rules of its own, so it is given one that needs no scaling: the pixels that the processor
would cut into patches. Its server takes text with a marker for each image or sound, not ids; so the text is checked,
stretch by stretch, to become the very ids again, and the whole to have as many tokens.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gemma_ops.data import media_files
from gemma_ops.data.parts import Part
from gemma_ops.errors import DataError
from gemma_ops.family.formats import PROJECTOR_FILE, PROJECTOR_MADE
from gemma_ops.family.media import LONGEST, RATE, TOKENS, TYPES, Senses

_BOS = "<bos>"
_FLOAT = 3
"""Number of the sample format in a WAV file."""
_BESIDE = ("config.json", PROJECTOR_FILE)
_CAUSAL_WIDTHS = (1536, 2560)
"""Widths of the models whose images llama.cpp reads from left to right, as text: those of E2B and E4B (tools/mtmd,
`mtmd_decode_use_non_causal`, b11549)."""
ImageReading = Literal["as trained", "token by token", "otherwise"]
"""Whether llama.cpp reads the tokens of an image as transformers does: always, when it is given one at a time (its
server gives several), or never."""


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt with images and sounds: its tokens, their types (`mm_token_type_ids`), and what is shown, in order: an
    image as (rows, columns, 3) uint8, a sound at 16 kHz as (samples,) float32."""

    ids: list[int]
    types: Sequence[int]
    shown: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    def longer(self, ids: Sequence[int]) -> ShownPrompt:
        """Return the prompt with further tokens of text."""
        return ShownPrompt([*self.ids, *ids], [*self.types, *[0] * len(ids)], self.shown)


def find_projector(file: Path) -> Path | None:
    """Return the mmproj file that belongs to a GGUF file of the step `quantize`, or of a version: that of the folder
    `mmproj` beside its own. None where there is none."""
    folder = file.parent.parent / PROJECTOR_MADE
    return folder / PROJECTOR_FILE if all((folder / name).is_file() for name in _BESIDE) else None


def image_reading(config: Mapping[str, Any]) -> ImageReading:
    """Return how a model's images can be read in llama.cpp, from its configuration.

    Where the tokens of an image see each other, llama.cpp lets them in sliding layers only. So does transformers in
    26B-A4B and 31B; in the 12B's class they do in every layer (5.24, `Gemma4UnifiedModel.forward`). Where they see only
    what came before, llama.cpp knows by the model's width, unless it is given one token at a time.
    """
    text, unified = config.get("text_config") or {}, "unified" in str(config.get("model_type"))
    known = int(text.get("hidden_size", 0)) in _CAUSAL_WIDTHS and not unified
    if text.get("use_bidirectional_attention", "vision" if unified else None) == "vision":
        return "otherwise" if unified or known else "as trained"
    return "as trained" if known else "token by token"


def read_image_reading(projector: Path) -> ImageReading:
    """Return the same for the model of an mmproj file."""
    return image_reading(json.loads((projector.parent / "config.json").read_text(encoding="utf-8")))


def shown_arrays(parts: Sequence[Part], places: Path | Mapping[str, Path | bytes], senses: Senses) -> list[np.ndarray]:
    """Return the stored parts of a conversation as arrays; `places` as in `media_files.bytes_of`. Raises DataError for
    what is gone or changed, or what the model doesn't take."""
    found = []
    for part in parts:
        if part["type"] not in senses.kinds:
            raise DataError(f"this model takes no {part['type']}", "ask a model that has a tower for it")
        data = media_files.bytes_of(part, places)
        found.append(_pixels(data, part, senses) if part["type"] == "image" else _samples(data))
    return found


def _pixels(data: bytes, part: Part, senses: Senses) -> np.ndarray:
    from PIL.Image import Resampling

    from gemma_ops.data.pictures import picture

    assert senses.image is not None
    rows, columns = senses.image.size(part["height"], part["width"])
    return np.asarray(picture(data).resize((columns, rows), Resampling.BICUBIC), dtype=np.uint8)


def _samples(data: bytes) -> np.ndarray:
    from gemma_ops.data.sounds import sound

    return sound(data)[:LONGEST]


def marked_prompt(
    prompt: ShownPrompt, tokenizer: Any, marker: str, tokenize: Callable[[str], list[int]]
) -> dict[str, Any]:
    """Return a prompt in the words of llama.cpp's server. It writes `<bos>` by itself, and the tokens that begin and
    end an image or a sound.

    Raises DataError where a stretch of text would become other ids than the prompt's (`tokenize` is llama.cpp's).
    """
    names = {number: kind for kind, number in TYPES.items()}
    stretches = [
        (kind, [token for token, _ in group])
        for kind, group in groupby(zip(prompt.ids, prompt.types, strict=True), key=lambda pair: pair[1])
    ]
    texts: list[str] = []
    for place, (kind, ids) in enumerate(stretches):
        if kind:
            continue
        first = _token(tokenizer, _BOS) if place == 0 else _token(tokenizer, TOKENS[names[stretches[place - 1][0]]][2])
        kept = _without(ids, first, 0)
        if place + 1 < len(stretches):
            kept = _without(kept, _token(tokenizer, TOKENS[names[stretches[place + 1][0]]][0]), -1)
        text = tokenizer.decode(kept, skip_special_tokens=False)
        if marker in text or (kept and tokenize(text) != kept):
            raise DataError(
                "the text around an image or a sound becomes other tokens in llama.cpp than in training",
                "ask about it in transformers: a checkpoint as target, or serve.format=merged",
            )
        texts.append(text)
    data = [base64.b64encode(media_file(one)).decode() for one in prompt.shown]
    if len(texts) != len(data) + 1:
        raise DataError("a prompt must begin and end with text", "ask something about the image or the sound")
    return {"prompt_string": marker.join(texts), "multimodal_data": data}


def _token(tokenizer: Any, name: str) -> int:
    return int(tokenizer.token_to_id(name))


def _without(ids: list[int], token: int, place: int) -> list[int]:
    if not ids or ids[place] != token:
        raise DataError(
            "a prompt with an image or a sound has no token where llama.cpp puts one by itself",
            "ask with the chat template that the model was trained with",
        )
    return ids[1:] if place == 0 else ids[:-1]


def media_file(shown: np.ndarray) -> bytes:
    """Return an image as PNG, and a sound as WAV of 32-bit floats: nothing is lost."""
    if shown.ndim == 1:
        data = shown.astype("<f4").tobytes()
        head = struct.pack("<4sIHHIIHH", b"fmt ", 16, _FLOAT, 1, RATE, 4 * RATE, 4, 32)
        body = b"WAVE" + head + struct.pack("<4sI", b"data", len(data)) + data
        return struct.pack("<4sI", b"RIFF", len(body)) + body
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG", compress_level=1)
    return file.getvalue()
