"""Token counts of the rows before anything is prepared: imported and rendered as training will read them."""

from __future__ import annotations

import itertools
from pathlib import Path

from gemma_ops.config import RunConfig
from gemma_ops.data import chat, media_files, published
from gemma_ops.data.import_rows import Importer
from gemma_ops.data.row_tokens import Manner, count_rows
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
    read = [item.example for item in itertools.islice(items, _MOST) if item.example is not None]
    counted = [row for row in count_rows(tokenizer, read, manner) if not row.error]  # `data check` and `prepare` tell
    made = [one for row in counted for one in row.examples]
    if not made:
        return None
    tokens = sum(length for length, _ in made)
    return Counted(
        lengths=tuple(length for length, _ in made),
        scored=sum(scored for _, scored in made) / tokens,
        per_row=len(made) / len(counted),
        rows=len(counted),
        whole=next(items, None) is None,
    )
