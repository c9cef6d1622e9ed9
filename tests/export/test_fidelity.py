"""KL divergence and its interval, against numbers computed another way."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_ops.data.row_tokens import Manner
from gemma_ops.export.fidelity import (
    Conversation,
    Divergence,
    FileDivergence,
    fidelity_conversations,
    logits_divergence,
)

VOCABULARY = 50


def logits(seed: int, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, VOCABULARY))


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    from scipy.special import log_softmax, rel_entr

    return rel_entr(np.exp(log_softmax(p, -1)), np.exp(log_softmax(q, -1))).sum(-1)


def divergence(ours: list[np.ndarray], theirs: list[np.ndarray]) -> Divergence:
    return logits_divergence(zip(ours, theirs, strict=True))


def test_the_divergence_is_exact_over_the_whole_vocabulary() -> None:
    ours = [logits(seed) for seed in range(4)]
    theirs = [values + 0.1 * logits(seed + 100) for seed, values in enumerate(ours)]
    full = divergence(ours, theirs)
    expected = np.concatenate([kl(x, y) for x, y in zip(ours, theirs, strict=True)])
    assert full.kl == pytest.approx(expected.mean(), rel=1e-9)
    assert full.kl_p99 == pytest.approx(np.quantile(expected, 0.99), rel=1e-9)
    assert full.top1 == np.mean([x.argmax(-1) == y.argmax(-1) for x, y in zip(ours, theirs, strict=True)])


def test_equal_distributions_diverge_by_nothing() -> None:
    same = [logits(seed) for seed in range(3)]
    found = divergence(same, same)
    assert (found.kl, found.top1, found.top1_interval) == (0.0, 1.0, (1.0, 1.0))


def test_interval_is_over_conversations_not_positions() -> None:
    """Positions of a conversation move together, so repeating them must not narrow the interval."""
    ours = [logits(seed, 1) for seed in range(12)]
    theirs = [values + 0.05 * (1 + seed) * logits(seed + 50, 1) for seed, values in enumerate(ours)]

    def width(repeats: int) -> float:
        found = divergence([np.repeat(x, repeats, 0) for x in ours], [np.repeat(x, repeats, 0) for x in theirs])
        assert found.kl_interval[0] < found.kl < found.kl_interval[1]
        assert found.positions == 12 * repeats
        return found.kl_interval[1] - found.kl_interval[0]

    assert width(9) == pytest.approx(width(1), rel=1e-9)


def test_answers_are_told_from_every_token_and_a_gain_is_a_paired_ratio() -> None:
    places = [Conversation([1, 2, 3, 4], [2, 3]) for _ in range(6)]
    random = np.random.default_rng(3)
    plain = FileDivergence(places, [random.uniform(1, 2, 4) for _ in places], [np.ones(4, bool) for _ in places])
    # A quarter of the plain file's divergence on answers, half of it elsewhere.
    kls = [values * np.array([0.5, 0.5, 0.25, 0.25]) for values in plain.kls]
    fitted = FileDivergence(places, kls, plain.hits)
    answers, every = fitted.gain_over(plain)
    assert (answers.ratio, answers.interval) == (pytest.approx(0.25), (pytest.approx(0.25), pytest.approx(0.25)))
    assert every.interval[0] < every.ratio < every.interval[1]
    assert 0.3 < every.ratio < 0.45
    assert fitted.answers().positions == 12
    assert fitted.report()["every_token"]["positions"] == 24
    assert fitted.metrics()["kl"] < fitted.metrics()["every_token_kl"]


def test_positions_lie_before_the_tokens_of_the_answer(tmp_path) -> None:
    from gemma_ops.data import chat
    from tests.helpers import tiny_models

    tokenizer = chat.load_tokenizer(tiny_models.save("dense31", tmp_path / "base"))
    answer = "A long answer, repeated. " * 20
    row = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}]}
    question = {"messages": row["messages"][:1]}
    asked = []

    def reply(prompt: list[int], count: int) -> list[int]:
        asked.append(prompt)
        return [77] * 10

    one, two = fidelity_conversations(tokenizer, [row, question], manner=Manner(), reply=reply)
    whole = chat.encode_chat(tokenizer, row["messages"])
    assert one.ids == whole.ids
    assert len(one.answer) == sum(whole.loss)
    assert all(whole.loss[position + 1] for position in one.answer)
    assert not whole.loss[one.answer[0]], "the first prediction is made after the prompt's last token"
    assert whole.ids[one.answer[-1] + 1] == tokenizer.token_to_id("<turn|>")
    assert asked == [chat.chat_prompt_ids(tokenizer, question["messages"])]
    assert two.ids == asked[0] + [77] * 10
    assert two.answer[0] == len(asked[0]) - 1
    assert two.answer[-1] == len(two.ids) - 2
