"""Marks for turns that are not to be learned: every author's spelling of them, honoured or refused, never ignored.

OpenAI marks an assistant message with `"weight": 0`; axolotl's and ms-swift's rows say `"train": false`, `"loss":
false` or `"trainable": false`; others give a list of masks next to the messages. A turn that is marked stays in the
conversation, as `"weight": 0`, and carries no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemma_ops.data.rowerror import RowError

TURN_MARKS = ("weight", "train", "training", "trainable", "learn", "loss", "loss_weight", "train_on_turn")
"""Keys of a turn: true or 1 to learn it, false or 0 not to."""
REVERSED = ("mask", "masked", "ignore", "ignore_loss")
"""Keys of a turn with the reverse meaning: true or 1 not to learn it."""
UNREADABLE = ("train_detail", "training_detail", "loss_scale", "loss_mask", "mask_spans")
"""Keys of a turn that mark parts of its text, which can't be honoured."""
_MARKS = frozenset((*TURN_MARKS, *REVERSED, *UNREADABLE))
ROW_MASKS = (
    "mask",
    "masks",
    "loss_mask",
    "loss_masks",
    "train_mask",
    "turn_mask",
    "turn_masks",
    "weights",
    "trainable",
)
"""Columns next to the messages with an entry a turn, true or 1 to learn it."""
TOKEN_MASKS = (
    "labels_mask", "assistant_mask", "assistant_masks", "completion_mask", "attention_mask", "label_mask", "token_mask",
    "loss_weights",
)  # fmt: skip
"""Columns with an entry for each token of an unknown tokenizer."""


def turn_is_learned(turn: dict[str, Any], role: str, where: str) -> bool:
    """True if a turn's own marks let it be learned. Raises RowError for a mark that can't be honoured: a weight between
    none and all, a mark on a part of the text, a turn of somebody else that is to be learned."""
    if _MARKS.isdisjoint(turn):
        return True
    for key in UNREADABLE:
        if turn.get(key) not in (None, [], {}, ""):
            raise RowError(
                "message_mark", f"{where} marks parts of its text ({key}); a turn is learned whole or not at all"
            )
    learned: dict[str, bool] = {}
    for key in (*TURN_MARKS, *REVERSED):
        value = turn.get(key)
        if value is None:
            continue
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if value not in (0, 1):  # True is 1
            raise RowError(
                "message_weight",
                f"{where} is weighted by itself ({key}: {value!r}); a turn is learned or not: use 1 or 0, or weigh "
                f"the row",
            )
        learned[key] = bool(value) is not (key in REVERSED)
    if len(set(learned.values())) > 1:
        raise RowError("message_mark", f"{where} says both that it is learned and that it isn't: {', '.join(learned)}")
    wanted = next(iter(learned.values()), True)
    if role != "assistant" and learned and wanted and any(key != "weight" for key in learned):
        raise RowError("message_mark", f"{where} ({role}) is marked to be learned; only what the model says is")
    return wanted


def marked_turns(row: dict[str, Any], turns: Any) -> Any:
    """Return the turns of a row, each with the mark that a column next to them gives it. Raises RowError for masks that
    can't be honoured: over tokens, or of another length than the turns."""
    for key in TOKEN_MASKS:
        if isinstance(row.get(key), list):
            raise RowError(
                "token_mask", f"the column {key} masks tokens of another tokenizer; mark turns instead ('weight': 0)"
            )
    if row.get("train") is False or row.get("trainable") is False:
        raise RowError("row_not_trained", "the row says that it is not to be trained on")
    masks = {key: row[key] for key in ROW_MASKS if isinstance(row.get(key), list)}
    if not masks or not isinstance(turns, list):
        return turns
    for key, mask in masks.items():
        turns = _masked(turns, mask, key)
    return turns


def _masked(turns: Sequence[Any], mask: Sequence[Any], key: str) -> list[Any]:
    answers = [index for index, turn in enumerate(turns) if isinstance(turn, dict) and _speaks(turn)]
    places = list(range(len(turns))) if len(mask) == len(turns) else answers if len(mask) == len(answers) else None
    if places is None:
        raise RowError(
            "row_mask",
            f"the column {key} has {len(mask)} entries, and the conversation {len(turns)} turns, {len(answers)} of "
            f"the model",
        )
    made = list(turns)
    for index, value in zip(places, mask, strict=True):
        if value not in (0, 1):
            raise RowError("row_mask", f"the column {key} holds {value!r}; a turn is learned (1) or not (0)")
        if index in answers:
            made[index] = {**made[index], "weight": int(value)}
    return made


def _speaks(turn: dict[str, Any]) -> bool:
    return str(turn.get("role", turn.get("from", ""))).lower() in ("assistant", "model", "gpt", "bot", "chatbot")
