"""The check of a merge: whether the merged model differs from its base, and is what the adapter made of the base.

The canary catches the merge that did nothing: an adapter whose names matched nothing, or one that was never trained.
Beside it, the base with the adapter attached by PEFT (or with a full fine-tune's tensors) is asked the same prompts: it
must agree with the merged model up to rounding, which catches a merge that did something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemma_ops.config import MachineConfig
from gemma_ops.data import chat
from gemma_ops.data.parts import media_of
from gemma_ops.data.prompt_record import Prompting
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import GateError
from gemma_ops.export import replacing
from gemma_ops.export.prompts import Row, before_answer, manner_of
from gemma_ops.modeling import adapters, full, generate
from gemma_ops.modeling.load import load_model, load_tokenizer, pick_device
from gemma_ops.modeling.media_inputs import Perceiver, Seen, join_media
from gemma_ops.runs import journal

_POSITIONS = 8  # last positions of each prompt whose logits are compared: enough to differ, small at 262,144 tokens
_NEW_TOKENS = 16


@dataclass(frozen=True)
class MergeChanges:
    """Findings of the canary over prompts and positions: largest |Δlogit| of the merged model to the base and to the
    base with the adapter attached, share of changed most likely tokens, greedy answers side by side."""

    max_logit_change: float
    max_adapter_gap: float
    top1_changed: float
    answers: list[dict[str, str]]

    @property
    def answers_changed(self) -> int:
        return sum(answer["base"] != answer["merged"] for answer in self.answers)

    def metrics(self) -> dict[str, float]:
        """Return the numbers of the step."""
        return {
            "canary/max_logit_change": self.max_logit_change,
            "canary/max_adapter_gap": self.max_adapter_gap,
            "canary/top1_changed": self.top1_changed,
            "canary/answers_changed": float(self.answers_changed),
        }

    def report(self) -> dict[str, Any]:
        """Return the numbers, and the answers side by side, for `report.json`."""
        return {
            "prompts": len(self.answers),
            "max_logit_change": float(f"{self.max_logit_change:.4g}"),
            "max_adapter_gap": float(f"{self.max_adapter_gap:.4g}"),
            "top1_changed": round(self.top1_changed, 4),
            "answers_changed": self.answers_changed,
            "answers": self.answers,
        }


def check_merge(
    base: Path,
    merged: Path,
    adapter: Path,
    chosen: list[Row],
    machine: MachineConfig,
    *,
    data: Path | None = None,
    towers: tuple[bool, bool] = (False, False),
    prompting: Prompting | None = None,
) -> MergeChanges:
    """Ask base, base with adapter, and merged model the same prompts; one model in memory at a time. `towers`: whether
    any, and whether all, of what changed lies in them; prompts that show too little can't tell the latter.

    Models come with their towers where a row shows something (its files lie below `data`), or where the adapter reaches
    into them. `prompting`: how the adapter's rows were asked. Raises ModelError when the merged folder does not load
    without missing keys, GateError when it agrees with the base in every logit.
    """
    tokenizer = load_tokenizer(merged)
    perceiver = Perceiver(merged)
    manner = manner_of(merged, prompting)
    prompts = [_prompt(tokenizer, row, manner, perceiver, data) for row in chosen]
    device = pick_device(machine.device, base)
    shows = any(one.seen for one in prompts)
    model = load_model(base, device=device, towers=towers[0] or shows)
    before, answers = _logits(model, prompts), _answers(model, tokenizer, prompts)
    tuned = (
        full.load_full(model, adapter, base) if replacing.is_full(adapter) else adapters.load_adapter(model, adapter)
    )
    attached = _logits(tuned, prompts)
    del model, tuned
    model = load_model(merged, device=device, towers=towers[0] or shows)
    after = _logits(model, prompts)
    found = MergeChanges(
        float((after - before).abs().max()),
        float((after - attached).abs().max()),
        float((after.argmax(-1) != before.argmax(-1)).float().mean()),
        [
            {"base": one, "merged": other}
            for one, other in zip(answers, _answers(model, tokenizer, prompts), strict=True)
        ],
    )
    journal.record(event="canary", **found.metrics())
    shown = {kind for one in prompts if one.seen for kind in one.seen.kinds}
    if found.max_logit_change == 0 and (not towers[1] or shown.issuperset(perceiver.senses.kinds)):
        raise GateError(
            f"the merged model answers {len(prompts)} prompts exactly as the base does",
            "the adapter has no effect: train longer, and check that it was trained on this base",
        )
    return found


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    seen: Seen | None


def _prompt(tokenizer: Any, row: Row, manner: Manner, perceiver: Perceiver, data: Path | None) -> _Prompt:
    messages = before_answer(row)
    senses = perceiver.senses if (shown := media_of(messages)) else None
    given = {**manner.of(row["messages"]), "senses": senses}
    asked = chat.prompt(tokenizer, messages, row.get("tools"), **given)
    return _Prompt(asked.ids, perceiver.see(shown, data, asked.types()) if shown and data else None)


def _logits(model: Any, prompts: list[_Prompt]) -> torch.Tensor:
    """Return the logits after the last positions of each prompt, (prompts * positions, vocabulary) in fp32."""
    found = []
    with torch.inference_mode():
        for one in prompts:
            given = {"input_ids": torch.tensor([one.ids])}
            if one.seen:
                given |= {"mm_token_type_ids": torch.tensor([one.seen.types]), **join_media([one.seen])}
            given = {key: value.to(model.device) for key, value in given.items()}
            found.append(model(**given, logits_to_keep=_POSITIONS, use_cache=False).logits[0].float().cpu())
    return torch.cat(found)


def _answers(model: Any, tokenizer: Any, prompts: list[_Prompt]) -> list[str]:
    found = generate.answer_prompts(
        model,
        tokenizer,
        [one.ids for one in prompts],
        seen=[one.seen for one in prompts],
        max_new_tokens=_NEW_TOKENS,
        batch_size=1,
    )
    return [answer.text for answer in found]
