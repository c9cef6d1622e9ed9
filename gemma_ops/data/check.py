"""What `gemma-ops data check` shows: the exact tokens of rows, which carry loss, and everything worth knowing first.

It reads as `prepare` reads, but changes nothing and writes nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from gemma_ops.config import DataConfig
from gemma_ops.config.training import Thinking
from gemma_ops.data import chat, media, published
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.findings import Context, Finding, finding, look
from gemma_ops.data.importing import Imported, Importer
from gemma_ops.data.tokens import Lengths
from gemma_ops.errors import DataError

Token = tuple[str, bool]
_LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class RowView:
    """One row as training sees it: `tokens` are (text, carries loss) in order, up to the cut; none when it can't be used.

    `loss` are the flags of the whole row. An image or a sound is one entry of `tokens`, with the soft tokens it takes;
    `count` counts them all. Where answers were compared, `tokens` is the prompt with the wanted answer and `rejected` with
    the unwanted one, and `loss` has the flags of each whole conversation.
    """

    id: str
    source: str
    tokens: list[Token]
    findings: list[Finding]
    loss: list[list[bool]] = field(default_factory=list)
    truncated: bool = False
    count: int = 0
    shown: tuple[tuple[str, int], ...] = ()
    """Kind and soft tokens of each image and sound."""
    rejected: list[Token] = field(default_factory=list)
    more: list[list[Token]] = field(default_factory=list)
    """The other examples of a conversation whose answers are examples of their own."""


@dataclass(frozen=True)
class CheckResult:
    """Rows, what was found in them, and how long they are. `checked` rows were read; `more` says whether there are others."""

    layout: str
    checked: int
    more: bool
    rows: list[RowView]
    totals: dict[str, int]
    """Rows by finding, errors first."""
    lengths: dict[str, Any]
    truncated: int
    max_length: int | None
    privacy: dict[str, int] = field(default_factory=dict)
    template: tuple[str, ...] = ()
    """What is told of the checkpoint's chat template, a line each."""

    @property
    def examples(self) -> int:
        """Examples that training makes of the rows."""
        return sum(len(row.loss) for row in self.rows)

    @property
    def findings(self) -> list[Finding]:
        """All findings, row by row."""
        return [item for row in self.rows for item in row.findings]

    def lines(self) -> list[str]:
        """The summary as plain lines for a terminal."""
        return list(_lines(self))

    def html(self) -> str:
        """One self-contained page with every row's tokens."""
        from gemma_ops.data.check_html import page

        return page(self)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokens' texts, which are given as token counts."""
        return {
            "layout": self.layout,
            "checked": self.checked,
            "more": self.more,
            "totals": self.totals,
            "tokens": self.lengths,
            "truncated": self.truncated,
            "examples": self.examples,
            "template": list(self.template),
            "max_length": self.max_length,
            "privacy": self.privacy,
            "findings": [asdict(item) for item in self.findings],
            "rows": [
                {
                    "id": row.id,
                    "source": row.source,
                    "tokens": row.count,
                    "with_loss": sum(loss for _, loss in row.tokens),
                    **({"media": [list(item) for item in row.shown]} if row.shown else {}),
                    **(
                        {
                            "rejected_tokens": len(row.rejected),
                            "rejected_with_loss": sum(loss for _, loss in row.rejected),
                        }
                        if row.rejected
                        else {}
                    ),
                }
                for row in self.rows
            ],
        }


def check(
    settings: DataConfig,
    *,
    source: Path | None,
    model: Path,
    max_length: int | None = None,
    limit: int = 1000,
    thinking: Thinking = "off",
    loss_on: Literal["all", "last"] = "all",
) -> CheckResult:
    """Look at the first `limit` rows of the source with the tokenizer and template of the checkpoint `model`.

    Raises DataError when there is nothing to read, and what the readers raise.
    """
    template = published.template_of(model)
    senses = media.senses(model)
    context = Context(
        chat.load_tokenizer(model), max_length, template=template, senses=senses, thinking=thinking, loss_on=loss_on
    )
    importer = Importer(source, settings, senses)
    items = iter(importer)
    result = check_rows(list(itertools.islice(items, limit)), context)
    if not result.checked:
        raise DataError(
            f"{source or settings.hub} holds no rows",
            "check data.path (and data.split); empty lines don't count as rows",
        )
    more = next(items, None) is not None
    told = tuple(published.template_told(template))
    return CheckResult(**{**result.__dict__, "layout": importer.layout, "more": more, "template": told})


def check_rows(items: list[Imported], context: Context) -> CheckResult:
    """Views and findings of imported rows."""
    views: list[RowView] = []
    totals: Counter[str] = Counter()
    privacy: Counter[str] = Counter()
    lengths = Lengths()
    for item in items:
        view = _view(item, context)
        views.append(view)
        totals.update({found.code for found in view.findings})
        if item.example is not None and view.loss:
            for loss in view.loss:
                lengths.add(loss)
            privacy[item.example["privacy"]] += 1
    levels = {found.code: _LEVELS.index(found.level) for view in views for found in view.findings}
    ordered = dict(sorted(totals.items(), key=lambda pair: (levels[pair[0]], -pair[1], pair[0])))
    truncated = sum(view.truncated for view in views)
    return CheckResult(
        "", len(items), False, views, ordered, lengths.table(), truncated, context.max_length, dict(privacy)
    )


def _view(item: Imported, context: Context) -> RowView:
    where = item.raw.source
    if item.example is None:
        return RowView("rejected", where, [], [finding(item.code, "rejected", where, item.reason)])
    row = item.example["id"]
    sides, findings = look(item.example, context)
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
    """(text, carries loss) per token: joined, the texts are the rendered conversation.

    A character that falls into several byte tokens is shown at the first of them; the others show their byte. The tokens
    of an image or a sound are one entry, `<|image|> x 256`.
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


def _lines(result: CheckResult) -> Any:
    some = "the first " if result.more else ""
    made = f", {result.examples:,} examples" if result.examples > result.checked else ""
    yield f"{some}{_rows(result.checked)}{made}, layout {result.layout}"
    yield from result.template
    yield ""
    yield f"{'tokens':<12}{'p50':>8}{'p95':>8}{'max':>8}"
    for part in ("prompt", "completion", "row"):
        values = result.lengths[part]
        yield f"{part:<12}" + "".join(f"{values[name]:>8,}" for name in ("p50", "p95", "max"))
    share = result.lengths["tokens_with_loss"] / max(1, result.lengths["tokens"])
    for kind, (count, least, most) in _shown(result).items():
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"{count:,} {kind} parts of {each} soft tokens each, between a begin and an end token"
    yield f"{result.lengths['tokens']:,} tokens, {result.lengths['tokens_with_loss']:,} ({share:.0%}) carry loss"
    if result.max_length is not None:
        yield f"longer than train.max_length ({result.max_length:,} tokens): {_rows(result.truncated)}"
    yield ""
    if not result.totals:
        yield "nothing to complain about"
    first = {item.code: item for item in reversed(result.findings)}
    for code, count in result.totals.items():
        item = first[code]
        yield f"{item.level:<8} {code}: {_rows(count)}, first {item.where}"
        yield f"         {item.what}"
        if item.fix:
            yield f"         fix: {item.fix}"


def _shown(result: CheckResult) -> dict[str, tuple[int, int, int]]:
    """By kind: images or sounds shown, and the fewest and most soft tokens of one."""
    found: dict[str, list[int]] = {}
    for row in result.rows:
        for kind, tokens in row.shown:
            found.setdefault(kind, []).append(tokens)
    return {kind: (len(all_), min(all_), max(all_)) for kind, all_ in sorted(found.items())}


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
