"""One row as training sees it, token by token, with what is found in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from gemma_ops.data.encoded import Encoded
from gemma_ops.data.import_rows import Imported
from gemma_ops.prepare.row_findings import Context, RowFinding, finding, look_at_row

Token = tuple[str, bool]


@dataclass(frozen=True)
class RowView:
    """One row as training sees it: `tokens` are (text, carries loss) in order, up to the cut; none when it can't be
    used.

    `loss` are the flags of the whole row. An image or a sound is one entry of `tokens`, with the soft tokens it takes;
    `count` counts them all. Where answers were compared, `tokens` is the prompt with the wanted answer and `rejected`
    with the unwanted one, and `loss` has the flags of each whole conversation.
    """

    id: str
    source: str
    tokens: list[Token]
    findings: list[RowFinding]
    loss: list[list[bool]] = field(default_factory=list)
    truncated: bool = False
    count: int = 0
    shown: tuple[tuple[str, int], ...] = ()
    """Kind and soft tokens of each image and sound."""
    rejected: list[Token] = field(default_factory=list)
    more: list[list[Token]] = field(default_factory=list)
    """Other examples of a conversation whose answers are examples of their own."""


def view_row(item: Imported, context: Context) -> RowView:
    """Return the view of an imported row: its tokens and findings."""
    where = item.raw.source
    if item.example is None:
        return RowView("rejected", where, [], [finding(item.code, "rejected", where, item.reason)])
    row = item.example["id"]
    sides, findings = look_at_row(item.example, context)
    findings += [finding(code, row, where) for code in sorted(set(item.notes))]
    if item.pii:
        findings.append(finding("pii", row, where, ", ".join(sorted(item.pii))))
    if not sides:
        return RowView(row, where, [], findings)
    seen = {name: encoded.cut(context.max_length) for name, encoded in sides.items()}
    texts = {name: token_texts(context.tokenizer, encoded) for name, encoded in seen.items()}
    main = next((name for name in seen if name != "rejected"), "rejected")
    return RowView(
        row, where, texts[main] if main != "rejected" else [], findings,
        [encoded.loss for encoded in sides.values()], any(encoded.truncated for encoded in seen.values()),
        sum(len(encoded.ids) for name, encoded in seen.items() if name.startswith(main)),
        tuple((block.kind, block.end - block.start - 2) for block in next(reversed(sides.values())).blocks),
        texts.get("rejected", []),
        [tokens for name, tokens in texts.items() if name.startswith("messages ")],
    )  # fmt: skip


def token_texts(tokenizer: Tokenizer, encoded: Encoded) -> list[Token]:
    """Return (text, carries loss) per token: joined, the texts are the rendered conversation.

    A character that falls into several byte tokens is shown at the first of them; the others show their byte. The
    tokens of an image or a sound are one entry, `<|image|> x 256`.
    """
    shown: list[Token] = []
    position = 0
    blocks = {block.start: block for block in encoded.blocks}
    inside = 0
    for place, (token, (start, end), loss) in enumerate(zip(encoded.ids, encoded.offsets, encoded.loss, strict=True)):
        if place in blocks:
            inside = blocks[place].end
            shown.append((f"{encoded.text[start:end]} x {inside - place - 2}", loss))
            position = end
        if place < inside:
            continue
        text = encoded.text[max(start, position) : end]
        shown.append((text or str(tokenizer.id_to_token(token)), loss))
        position = max(position, end)
    return shown
