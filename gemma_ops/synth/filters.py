"""Filters over all rows together: duplicates, rows that overlap with an evaluation task, and personal data.

Each filter is told a row once, in the order of the requests, and says why it must go. Pairs are compared with pairs,
rows with rows; both with every task.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gemma_ops.data.boilerplate import Boilerplate
from gemma_ops.data.hashed_words import hashes
from gemma_ops.prepare.deduplicate import NearDuplicates, exact_key
from gemma_ops.prepare.task_overlap import Overlap
from gemma_ops.privacy import personal_data
from gemma_ops.synth.material import Conversation
from gemma_ops.synth.row_checks import Rejection
from gemma_ops.tasks.compared_questions import TaskQuestions, user_texts


class Filters:
    """The filters that look at texts alone, with what they have seen."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tasks: Sequence[TaskQuestions],
        *,
        near_duplicates: float | None,
        personal: str,
    ) -> None:
        """Prepare the filters; `conversations` are all rows there will be, to learn what many of them share word for
        word."""
        sample = [hashes(text) for messages in conversations for text in user_texts(messages)]
        boilerplate = Boilerplate(sample)
        self.names = [
            "exact",
            *(["near"] if near_duplicates else []),
            "overlap",
            *([] if personal == "off" else ["pii"]),
        ]
        self.personal: Counter[str] = Counter()
        """Number of rows by kind of personal data, dropped or not."""
        self.overlaps: Counter[str] = Counter()
        self._exact: dict[tuple[bool, bytes], str] = {}
        self._near = (
            {kind: NearDuplicates(near_duplicates, boilerplate) for kind in (False, True)} if near_duplicates else {}
        )
        self._overlap = Overlap(tasks, sample)
        self._drop_personal = personal == "drop"
        self._look = personal != "off"

    def find(
        self, name: str, messages: Conversation, tools: Sequence[dict[str, Any]], rejected: str | None
    ) -> Rejection | None:
        """Return why a row must go, or None, after which later rows are compared with it."""
        pair = rejected is not None
        unwanted = {"rejected": [{"role": "assistant", "content": rejected}]} if pair else {}
        key = pair, exact_key({"messages": messages, "tools": list(tools), **unwanted})
        if key in self._exact:
            return Rejection("exact_duplicate", f"the same as {self._exact[key]}")
        self._exact[key] = name
        if match := self._overlap.find(user_texts(messages)):
            self.overlaps[match.task] += 1
            return Rejection("overlap", f"{match.place} of the task {match.task}: {match.how}")
        if found := self._personal(messages, rejected):
            self.personal.update(found)
            if self._drop_personal:
                return Rejection("pii", f"holds personal data: {', '.join(sorted(found))}")
        if self._near and (near := self._near[pair].find_or_add({"messages": messages, "source": name})):
            return Rejection("near_duplicate", f"{near[1]:.0%} similar to {near[0]}")
        return None

    def _personal(self, messages: Conversation, rejected: str | None) -> set[str]:
        if not self._look:
            return set()
        calls = [
            json.dumps(call["function"], ensure_ascii=False) for turn in messages for call in turn.get("tool_calls", [])
        ]
        texts = [*(turn["content"] for turn in messages), *calls, rejected or ""]
        return {item.kind for text in texts for item in personal_data.find_personal(text)}
