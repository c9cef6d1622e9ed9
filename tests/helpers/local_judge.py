"""A judge in this process for tests of what is made of verdicts: reads a request as a model would, answers in JSON."""

import json
import re

from gemma_ops.answer import Answer
from gemma_ops.judging.judge_material import JudgedPair

_PART = re.compile(r"^=== ([0-9a-f]{16}) begin (.+?)\n(.*?)\n=== \1 end \2$", re.DOTALL | re.MULTILINE)


class Judge:
    """A Target whose verdict `choose(parts)` gives; parts are the fenced texts by name. It may return whole replies."""

    sees = frozenset({"local_only", "paid", "any"})
    place, lockstep = "stays here", False

    def __init__(self, choose, name="openai:http://127.0.0.1:1/v1#honest", family="qwen", identity=None):
        self.choose, self.name, self.family, self.identity = choose, name, family, identity or name
        self.asked = []
        self.closed = False

    def answer(self, batches, *, max_new_tokens, schema=None):
        for batch in batches:
            yield [self._one(prompt, schema) for prompt in batch]

    def _one(self, prompt, schema):
        self.asked.append(prompt)
        parts = {name: text for _, name, text in _PART.findall(prompt.messages[1]["content"])}
        said = self.choose(parts)
        if isinstance(said, Answer):
            return said
        return Answer(verdict(schema, said) if isinstance(said, str) else json.dumps(said), "stop", 100, 50, 0.1)

    def close(self):
        self.closed = True


def verdict(schema, said):
    """A whole verdict that says one thing throughout."""
    names = schema["$defs"]["Criterion"]["properties"]["name"]
    names = names.get("enum") or [names["const"]]
    extra = {"score": 5 if said == "pass" else 1} if said in ("pass", "fail") else {"better": said}
    criteria = [{"name": name, "reason": "as seen", **extra} for name in names]
    return json.dumps({"criteria": criteria, "reason": "on the whole", "verdict": said})


def quality(text):
    """What an honest judge sees: the grade that our test answers carry, none where words are out of order."""
    found = re.search(r"graded (-?\d+) by the script", text)
    return int(found.group(1)) if found else -1


def honest(parts):
    """Prefers the better grade; equal grades tie."""
    if "answer" in parts:
        return "pass" if quality(parts["answer"]) >= 5 else "fail"
    gap = quality(parts["answer A"]) - quality(parts["answer B"])
    return "A" if gap > 0 else "B" if gap < 0 else "tie"


def answer(grade, words=0):
    return f"This answer was graded {grade} by the script that wrote it" + " and goes on" * words


def pairs(grades, **extra):
    """Pairs from (first, second) grades."""
    return [
        JudgedPair(
            f"q{index}", [{"role": "user", "content": f"Question {index}?"}], answer(a), answer(b, index % 3), **extra
        )
        for index, (a, b) in enumerate(grades)
    ]
