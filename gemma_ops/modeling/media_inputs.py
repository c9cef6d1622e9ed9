"""Images and sounds as the tensors a model takes, by the processor the checkpoint brings.

The settings are those of `processor_config.json`; the mathematics is transformers' own, in its variant for Pillow and
NumPy, so that neither torchvision nor torchaudio is needed and the same file gives the same numbers on every machine.
For the 12B transformers has no such variant: its patches are the pixels of one soft token each, which is what the
common processor gives when a patch is that large. Only what a file needs is kept: batches pad to their own longest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_ops.data import media_files
from gemma_ops.data.parts import Part
from gemma_ops.errors import DataError
from gemma_ops.family.media import LONGEST, Senses

_UNUSED = ("image_processor_type", "feature_extractor_type", "processor_class", "image_seq_length")
"""Keys of a processor's file that name classes, or repeat `max_soft_tokens`."""


@dataclass(frozen=True)
class Seen:
    """Images and sounds of one conversation, in order, before it is joined with others.

    `pictures`: pixels [P, D] and patch places [P, 2] (x, y) of each image, P patches. `sounds`: features [T, F] of each
    sound, T frames. `types`: `mm_token_type_ids` of the conversation, one per token.
    """

    types: list[int]
    pictures: list[tuple[Any, Any]] = field(default_factory=list)
    sounds: list[Any] = field(default_factory=list)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds of media there are, of `image` and `audio`."""
        return (("image",) if self.pictures else ()) + (("audio",) if self.sounds else ())


class Perceiver:
    """Converter of stored parts into tensors for the model of a checkpoint folder."""

    def __init__(self, folder: Path, senses: Senses | None = None) -> None:
        self.senses = senses or Senses.read(folder)
        self._folder = folder
        self._pictures: Any = None
        self._sounds: Any = None

    def see(self, parts: Sequence[Part], places: Path | Mapping[str, Path | bytes], types: list[int]) -> Seen:
        """Return the parts of a conversation as tensors; `places` as in `media_files.bytes_of`.

        Raises DataError when a file is gone, was changed, or gives another number of soft tokens than its part
        promises.
        """
        seen = Seen(types)
        for part in parts:
            data = media_files.bytes_of(part, places)
            if part["type"] == "image":
                pixels, where = self._picture(data)
                tokens = len(pixels) // self._patches()
                seen.pictures.append((pixels, where))
            else:
                features = self._sound(data)
                tokens = len(features) if self.senses.unified else -(-len(features) // 4)
                seen.sounds.append(features)
            if tokens != self.senses.tokens(part):
                raise DataError(
                    f"{part['path']} gives {tokens} soft tokens, and {self.senses.tokens(part)} were counted",
                    "prepare the data again: --redo prepare; if it repeats, this is a defect of gemma-ops",
                )
        return seen

    def _patches(self) -> int:
        """Return the number of patches that become one soft token."""
        assert self.senses.image is not None
        return 1 if self.senses.unified else self.senses.image.pool**2

    def _picture(self, data: bytes) -> tuple[Any, Any]:
        from gemma_ops.data.pictures import picture

        if self._pictures is None:
            self._pictures = self._image_processor()
        # Batches of one: the processor pads each image to the budget, and that padding is cut off again.
        found = self._pictures(images=[picture(data)], return_tensors="pt")
        count = int(found["num_soft_tokens_per_image"][0]) * self._patches()
        return found["pixel_values"][0, :count], found["image_position_ids"][0, :count]

    def _sound(self, data: bytes) -> Any:
        import torch

        from gemma_ops.data.sounds import sound

        if self._sounds is None:
            self._sounds = self._feature_extractor()
        found = self._sounds([sound(data)[:LONGEST]], return_tensors="np")
        features, mask = found["input_features"][0], found["input_features_mask"][0].astype(bool)
        return torch.from_numpy(features[: int(mask.sum())])

    def _image_processor(self) -> Any:
        from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

        rules = self.senses.image
        if rules is None:
            raise _not_taken("images")
        own = self._section("image_processor")
        side = rules.patch * rules.pool if self.senses.unified else rules.patch
        pool = 1 if self.senses.unified else rules.pool
        own |= {"patch_size": side, "pooling_kernel_size": pool, "max_soft_tokens": rules.budget}
        return Gemma4ImageProcessorPil(**own)

    def _feature_extractor(self) -> Any:
        if self.senses.audio is None:
            raise _not_taken("audio")
        own = self._section("feature_extractor")
        if self.senses.unified:
            from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import (
                Gemma4UnifiedAudioFeatureExtractor as Unified,
            )

            return Unified(**own)
        from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

        return Gemma4AudioFeatureExtractor(**own)

    def _section(self, name: str) -> dict[str, Any]:
        """Return a part of the processor's file, without what the class doesn't take."""
        for file, key in (("processor_config.json", name), ("preprocessor_config.json", None)):
            if (self._folder / file).is_file():
                body = json.loads((self._folder / file).read_text(encoding="utf-8"))
                section = body if key is None else body.get(key)
                if section:
                    return {key: value for key, value in section.items() if key not in _UNUSED}
        return {}


def join_media(seen: Sequence[Seen]) -> dict[str, Any]:
    """Return the images and sounds of several conversations as arguments of one forward pass, in their order.

    `pixel_values` [images, patches, D] and `image_position_ids` [images, patches, 2] (-1 where there is none);
    `input_features` [sounds, frames, F] and `input_features_mask` [sounds, frames].
    """
    import torch

    found: dict[str, Any] = {}
    if pictures := [picture for one in seen for picture in one.pictures]:
        longest = max(len(pixels) for pixels, _ in pictures)
        found["pixel_values"] = torch.stack([_longer(pixels, longest, 0.0) for pixels, _ in pictures])
        found["image_position_ids"] = torch.stack([_longer(where, longest, -1) for _, where in pictures])
    if sounds := [sound for one in seen for sound in one.sounds]:
        longest = max(map(len, sounds))
        found["input_features"] = torch.stack([_longer(sound, longest, 0.0) for sound in sounds])
        found["input_features_mask"] = torch.stack(
            [torch.arange(longest) < torch.tensor(len(sound)) for sound in sounds]
        )
    return found


def _longer(values: Any, length: int, fill: float) -> Any:
    import torch

    return torch.nn.functional.pad(values, (0, 0, 0, length - len(values)), value=fill)


def _not_taken(what: str) -> DataError:
    return DataError(f"this model takes no {what}", "use a size that does: audio goes into E2B, E4B and 12B")
