"""A conversation as tokens, with the stretches that stand for images and sounds.

The template renders one `<|image|>` or `<|audio|>` per file. The model needs as many soft tokens as its encoder will
give, between a begin and an end token: `expand` puts them in, as the published processors do by replacing text. None of
them carries loss, and a cut never goes through them: half an image would have more features than places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from gemma_ops.data.parts import media_of
from gemma_ops.errors import DataError, ModelError
from gemma_ops.family.media import TOKENS, TYPES, Senses


class Block(NamedTuple):
    """Position of one image or sound: token positions [start, end), its begin and end token included."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens. `ids`, `loss` and `offsets` (character ranges of `text`) have one entry per token;
    `offsets` has none where nobody asked for them.

    `blocks` are the images and sounds, in the order of the conversation's parts; after a cut, those that are left
    whole.
    """

    ids: list[int]
    loss: list[bool]
    truncated: bool
    text: str
    offsets: list[tuple[int, int]]
    blocks: tuple[Block, ...] = ()

    def cut(self, max_length: int | None) -> Encoded:
        """Return the first `max_length` tokens, fewer where they would end inside an image or a sound; the text stays
        whole."""
        if max_length is None or len(self.ids) <= max_length:
            return self
        end = next((block.start for block in self.blocks if block.start < max_length < block.end), max_length)
        kept = tuple(block for block in self.blocks if block.end <= end)
        return Encoded(self.ids[:end], self.loss[:end], True, self.text, self.offsets[:end], kept)

    def scored_like(self, beginning: Encoded) -> Encoded:
        """Return this conversation with the loss flags of the given beginning as well."""
        return replace(self, loss=[*beginning.loss, *self.loss[len(beginning.loss) :]])

    def types(self) -> list[int]:
        """Return `mm_token_type_ids`: 1 for an image's soft tokens, 3 for a sound's, 0 for all else."""
        found = [0] * len(self.ids)
        for block in self.blocks:
            found[block.start + 1 : block.end - 1] = [TYPES[block.kind]] * (block.end - block.start - 2)
        return found


def expand(
    encoded: Encoded, tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], senses: Senses | None
) -> Encoded:
    """Return the conversation with every placeholder expanded to its block of soft tokens. What `messages` shows must
    be stored parts.

    Raises DataError when the conversation shows something and `senses` doesn't take it, or when the template did not
    render every part; ModelError when tokenizer and model disagree about the tokens.
    """
    parts = media_of(messages)
    if not parts:
        return encoded
    kinds = {part["type"] for part in parts}
    if lacking := sorted(kinds - set(senses.kinds if senses else ())):
        raise DataError(
            f"the conversation shows {' and '.join(lacking)}, which this model does not take",
            "use a size that does: images go into all sizes, audio into E2B, E4B and 12B",
        )
    assert senses is not None
    known = {_ids(tokenizer, senses, kind)[1]: kind for kind in kinds}
    ids: list[int] = []
    loss: list[bool] = []
    offsets: list[tuple[int, int]] = []
    blocks: list[Block] = []
    places = encoded.offsets or [(0, 0)] * len(encoded.ids)
    for token, flag, place in zip(encoded.ids, encoded.loss, places, strict=True):
        kind = known.get(token)
        if kind is None:
            ids.append(token)
            loss.append(flag)
            offsets.append(place)
            continue
        part = parts[len(blocks)] if len(blocks) < len(parts) else None
        if part is None or part["type"] != kind:
            raise _misplaced(len(parts))
        begin, soft, end = _ids(tokenizer, senses, kind)
        count = senses.tokens(part)
        blocks.append(Block(len(ids), len(ids) + count + 2, kind))
        ids += [begin, *[soft] * count, end]
        loss += [False] * (count + 2)
        # The characters belong to the first token, so that a reader sees the placeholder once.
        offsets += [place, *[(place[1], place[1])] * (count + 1)]
    if len(blocks) != len(parts):
        raise _misplaced(len(parts))
    return replace(encoded, ids=ids, loss=loss, offsets=offsets, blocks=tuple(blocks))


def _ids(tokenizer: Tokenizer, senses: Senses, kind: str) -> list[int]:
    """Return the begin, soft and end token of a kind, as the tokenizer has them and the model's configuration expects
    them."""
    found = []
    expected = dict(senses.ids)
    for token in TOKENS[kind]:
        number = tokenizer.token_to_id(token)
        if number is None or number != expected.get(token, number):
            raise ModelError(
                f"the tokenizer has {'no' if number is None else f'id {number} for'} {token}, and the model's "
                f"configuration says {expected.get(token)}",
                "tokenizer.json and config.json must be those of one checkpoint",
            )
        found.append(int(number))
    return found


def _misplaced(count: int) -> DataError:
    return DataError(
        f"the template did not render the {count} images and sounds of the conversation one by one",
        "put them into user turns, or into the results of tools",
    )
