"""Greedy answers from a model in memory, in batches of similar length."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_ops.answer import Answer, End
from gemma_ops.modeling.media_inputs import Seen, join_media
from gemma_ops.modeling.thoughts import left_open, split_ids, thought_text

STOPS = ("<eos>", "<turn|>", "<|tool_response>")
"""Names of the tokens that end a reply of Gemma 4; the last hands over to a tool."""


def stop_ids(model: Any) -> list[int]:
    """Return the token ids that end a reply, from the checkpoint's generation settings (Gemma 4: `<eos>`, `<turn|>`,
    `<|tool_response>`)."""
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def answer_prompts(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    seen: Sequence[Seen | None] | None = None,
) -> Iterator[Answer]:
    """Answer prompts of token ids, greedily, yielding in their order; `seen` holds the images and sounds of each, if
    any.

    Batches are made of neighbours in length, so little is spent on padding; a row's result does not depend on its
    batch beyond rounding. A reply cut at `max_new_tokens` ends with `length`.
    """
    import torch

    stops = set(stop_ids(model))
    clock = _Clock()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    done: dict[int, Answer] = {}
    following = 0
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            began = time.perf_counter()
            longest = max(len(prompts[index]) for index in chosen)
            ids = torch.zeros(len(chosen), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(chosen):
                ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, longest - len(prompts[index]) :] = 1
            shown = shown_arguments([seen[index] for index in chosen], longest) if seen else {}
            with torch.inference_mode():
                out = model.generate(
                    **{key: value.to(model.device) for key, value in shown.items()},
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    eos_token_id=sorted(stops),
                    pad_token_id=0,
                    use_cache=True,
                    logits_processor=[clock.started()],
                )[:, longest:].tolist()
            each, first = (time.perf_counter() - began) / len(chosen), clock.first
            for row, index in enumerate(chosen):
                done[index] = _finish(tokenizer, out[row], stops, prompts[index], each, first)
            while following in done:
                yield done.pop(following)
                following += 1
    finally:
        model.train(training)


def shown_arguments(seen: Sequence[Seen | None], longest: int) -> dict[str, Any]:
    """Return the images and sounds of a batch's prompts as arguments of the model, its types padded as the prompts are;
    empty for text."""
    import torch

    there = [one for one in seen if one and (one.pictures or one.sounds)]
    if not there:
        return {}
    types = torch.zeros(len(seen), longest, dtype=torch.long)
    for row, one in enumerate(seen):
        if one:
            types[row, longest - len(one.types) :] = torch.tensor(one.types)
    return {"mm_token_type_ids": types, **join_media(there)}


class _Clock:
    """Measures the time to a batch's first token: `generate` calls it with the logits of every step."""

    def started(self) -> _Clock:
        """Start to measure the next batch."""
        self._began = time.perf_counter()
        self.first = 0.0
        return self

    def __call__(self, ids: Any, scores: Any) -> Any:
        if not self.first:
            scores[0, 0].item()  # waits for a GPU that is still computing them
            self.first = round(time.perf_counter() - self._began, 4)
        return scores


@dataclass(frozen=True)
class Spoken:
    """What a model said: the answer, the thought before it, how it ended, and the tokens of both, channel and stop with
    the answer's."""

    text: str
    thought: str
    end: End
    tokens: int
    thought_tokens: int


def read_reply(tokenizer: Any, ids: list[int], stops: set[int], *, opened: bool = False) -> Spoken:
    """Read a reply from its tokens; those after the first stop are ignored. `opened`: the prompt ends inside a
    thought."""
    end: End = "length"
    for place, token in enumerate(ids):
        if token in stops:
            ids, end = ids[: place + 1], "stop"
            break
    kept = ids[:-1] if end == "stop" else ids
    thoughts, answer = split_ids(tokenizer, kept, opened=opened)
    text = tokenizer.decode(answer, skip_special_tokens=True).strip()
    thought = thought_text(tokenizer.decode(thoughts, skip_special_tokens=True))
    return Spoken(text, thought, end, len(ids) - len(thoughts), len(thoughts))


def _finish(tokenizer: Any, ids: list[int], stops: set[int], prompt: list[int], seconds: float, first: float) -> Answer:
    said = read_reply(tokenizer, ids, stops, opened=left_open(tokenizer, prompt))
    return Answer(
        said.text, said.end, len(prompt), said.tokens, round(seconds, 4), first_seconds=first,
        thought_tokens=said.thought_tokens, thought=said.thought,
    )  # fmt: skip
