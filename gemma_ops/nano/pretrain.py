"""Training of nano from its seed: plain AdamW on the lessons. Answers carry the loss; questions a tenth of it, because
most of their tokens are drawn at random and nothing could predict them.

The result depends on the seed, on the number of steps and, through rounding, on the processor and the number of
threads; on one machine two trainings end with the same bytes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gemma_ops.nano import lessons, nano_shape

STEPS = 2400
ROWS = 32
PEAK = 3e-3
SEED = 20
QUESTION_WEIGHT = 0.1
Row = tuple[list[int], int]
"""Token ids of a lesson, and how many of them are the question."""


def lesson_batches(tokenizer: Any, seed: int, rows: int) -> Iterator[list[Row]]:
    """Yield endless batches; rows of like length stand together, so that little is spent on padding."""
    rng = random.Random(seed)
    while True:
        items = [lessons.lesson(rng) for _ in range(rows * 16)]
        asked = tokenizer.encode_batch(
            [f"<bos><|turn>user\n{item.question}<turn|>\n<|turn>model\n" for item in items], add_special_tokens=False
        )
        answered = tokenizer.encode_batch([f"{item.answer}<turn|>" for item in items], add_special_tokens=False)
        ids = [(first.ids + second.ids, len(first.ids)) for first, second in zip(asked, answered, strict=True)]
        ids.sort(key=lambda row: len(row[0]))
        groups = [ids[start : start + rows] for start in range(0, len(ids), rows)]
        rng.shuffle(groups)
        yield from groups


def pretrain(
    folder: Path, *, steps: int = STEPS, rows: int = ROWS, seed: int = SEED, threads: int = 1, corpus_lines: int = 6000
) -> list[float]:
    """Train the tokenizer and the model, save the checkpoint in `folder`, and return the loss of every step."""
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    tokenizer = nano_shape.train_tokenizer(lessons.corpus(corpus_lines, seed))
    model = nano_shape.build_nano(seed)
    losses = train_on_lessons(model, lesson_batches(tokenizer, seed, rows), steps, partial(print, flush=True))
    nano_shape.save_nano(model, folder, tokenizer)
    return losses


def train_on_lessons(model: Any, batches: Iterator[list[Row]], steps: int, tell: Callable[[str], None]) -> list[float]:
    """Train all parameters of a model on batches of lessons, and return the loss of every step; `tell` hears of each
    hundred."""
    import torch
    from torch.nn.functional import cross_entropy

    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=PEAK,
        betas=(0.9, 0.98),
        fused=True,
    )
    losses: list[float] = []
    started = time.time()
    for step in range(steps):
        share = step / steps
        rate = PEAK * min(1.0, (step + 1) / (0.04 * steps + 1)) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        tokens = torch.zeros(len(batch), max(len(ids) for ids, _ in batch), dtype=torch.long)
        weight = torch.zeros(tokens.shape)
        for index, (ids, asked) in enumerate(batch):
            tokens[index, : len(ids)] = torch.tensor(ids)
            weight[index, : len(ids)] = QUESTION_WEIGHT
            weight[index, asked : len(ids)] = 1.0
        # Right-padded and causal: no mask is needed, padding only follows what counts.
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        each = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        loss = (each * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99 or step == steps - 1:
            mean = sum(losses[-100:]) / len(losses[-100:])
            tell(f"step {step + 1}/{steps}  loss {mean:.4f}  {time.time() - started:.0f} s")
    model.eval()
    return losses
