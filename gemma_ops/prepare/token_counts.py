"""Token counts of the rows before anything is prepared: imported and rendered as training will read them."""

from __future__ import annotations

import itertools
from pathlib import Path

from gemma_ops.config import RunConfig
from gemma_ops.data import chat, media_files, published
from gemma_ops.data.import_rows import Importer
from gemma_ops.data.row_tokens import Manner, loss_flags
from gemma_ops.errors import DataError
from gemma_ops.planning.row_lengths import Counted

_MOST = 2000
"""Most rows that are read: a plan answers within seconds."""


def count_tokens(config: RunConfig, model: Path) -> Counted | None:
    """Count the tokens of the first rows of `data.path` with the tokenizer and template in the folder `model`; None
    where no row of them can be used. Raises what the readers raise."""
    source = Path(config.data.path).expanduser() if config.data.path else None
    if source is None or not source.exists():
        return None
    train = config.train
    manner = Manner(
        template=published.template_of(model),
        thinking=train.thinking,
        loss_on=train.loss_on,
        texts=train.method == "pretrain",
        senses=media_files.senses(model),
    )
    tokenizer = chat.load_tokenizer(model)
    items = iter(Importer(source, config.data, manner.senses))
    flags: list[list[bool]] = []
    rows = 0
    for item in itertools.islice(items, _MOST):
        if item.example is None:
            continue
        try:
            made = loss_flags(tokenizer, item.example, manner)
        except DataError:
            continue  # `data check` and `prepare` tell
        rows += 1
        flags += made
    if not flags:
        return None
    tokens = sum(map(len, flags))
    return Counted(
        lengths=tuple(map(len, flags)),
        scored=sum(map(sum, flags)) / tokens,
        per_row=len(flags) / rows,
        rows=rows,
        whole=next(items, None) is None,
    )
