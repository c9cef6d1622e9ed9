"""What an evaluation leaves for a server: the questions with what each model that may be served said."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from gemma_ops.answer import Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.data import chat, published
from gemma_ops.evaluation.canary_rows import canary_record, recorded_answers
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.nano import WEIGHTS
from gemma_ops.targets.checkpoint_target import CheckpointTarget
from gemma_ops.tasks.stored_answers import StoredAnswer

ROWS = tuple(ScoredRow(str(number), ({"role": "user", "content": f"question {number}"},), "a") for number in range(20))
TASK = SimpleNamespace(name="t", rows=ROWS, file=SimpleNamespace(generation=SimpleNamespace(max_new_tokens=9)))


def stored(target, texts):
    answers = [
        StoredAnswer(
            key=f"{target}{row.id}",
            target=target,
            task="t",
            row=row.id,
            text=text,
            end="stop",
            prompt_tokens=1,
            new_tokens=1,
            seconds=0.1,
        )
        for row, text in texts
    ]
    return CheckpointTarget(target, WEIGHTS, MachineConfig()), TASK, answers


def test_the_tuned_checkpoint_is_recorded_where_nothing_is_quantized():
    """Questions that the base answers otherwise come first, and their prompts are those of the evaluation."""
    base = stored("base", [(row, "same") for row in ROWS])
    tuned = stored("tuned", [(row, "same" if int(row.id) < 15 else "other") for row in ROWS])
    again = [
        first.text for (first,) in tuned[0].answer([[Prompt(row.messages)] for row in ROWS[15:18]], max_new_tokens=9)
    ]
    for place, text in enumerate(again, 15):
        tuned[2][place] = replace(tuned[2][place], text=text)
    record = canary_record([base, tuned])
    assert record["repeats"] == {"tuned": {"asked": 16, "same": 3}}  # it is nano, and says what nano says
    assert recorded_answers(record) == {"tuned": 16, "base": 16}
    assert [row["answers"]["tuned"] for row in record["rows"][:5]] == [*again, "other", "other"]
    first = record["rows"][0]
    wanted = chat.chat_prompt_ids(
        load_tokenizer(WEIGHTS), list(ROWS[15].messages), template=published.template_of(WEIGHTS)
    )
    assert (first["row"], first["ids"], first["max_new_tokens"]) == ("15", wanted, 9)


def test_a_base_alone_and_other_checkpoints_leave_nothing_to_repeat():
    assert canary_record([stored("base", [(row, "a") for row in ROWS])]) is None
    assert canary_record([stored("./other", [(row, "a") for row in ROWS])]) is None
