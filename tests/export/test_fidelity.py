"""KL divergence and its interval, against numbers computed another way."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_ops.data.row_tokens import Manner
from gemma_ops.export.fidelity import compare_logits, fidelity_conversations, from_logits

VOCABULARY = 50


def logits(seed: int, rows: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, VOCABULARY))


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    from scipy.special import log_softmax, rel_entr

    return rel_entr(np.exp(log_softmax(p, -1)), np.exp(log_softmax(q, -1))).sum(-1)


def test_whole_distributions_give_the_exact_divergence() -> None:
    ours = [logits(seed) for seed in range(4)]
    theirs = [values + 0.1 * logits(seed + 100) for seed, values in enumerate(ours)]
    full = compare_logits(
        [from_logits(x, VOCABULARY) for x in ours], [from_logits(x, VOCABULARY) for x in theirs], VOCABULARY
    )
    expected = np.concatenate([kl(x, y) for x, y in zip(ours, theirs, strict=True)])
    assert full.kl == pytest.approx(expected.mean(), rel=1e-9)
    assert full.kl_p99 == pytest.approx(np.quantile(expected, 0.99), rel=1e-9)
    assert full.top1 == np.mean([x.argmax(-1) == y.argmax(-1) for x, y in zip(ours, theirs, strict=True)])
    assert full.name == "kl"


def test_top_k_is_a_lower_bound_under_another_name() -> None:
    ours, theirs = [logits(1)], [logits(1) + 0.3 * logits(2)]
    exact = compare_logits(
        [from_logits(x, VOCABULARY) for x in ours], [from_logits(x, VOCABULARY) for x in theirs], VOCABULARY
    )
    previous = 0.0
    for top in (5, 20, 49):
        part = compare_logits([from_logits(x, top) for x in ours], [from_logits(x, top) for x in theirs], VOCABULARY)
        assert 0 < part.kl <= exact.kl + 1e-12
        assert part.kl >= 0.5 * previous
        assert part.name == "kl_topk"
        assert "kl_topk" in part.report()
        assert "kl" not in part.metrics()
        previous = part.kl
    assert previous == pytest.approx(exact.kl, rel=0.02)


def test_equal_distributions_diverge_by_nothing() -> None:
    same = [from_logits(logits(seed), VOCABULARY) for seed in range(3)]
    found = compare_logits(same, same, VOCABULARY)
    assert (found.kl, found.top1, found.top1_interval) == (0.0, 1.0, (1.0, 1.0))


def test_interval_is_over_conversations_not_positions() -> None:
    """Positions of a conversation move together, so repeating them must not narrow the interval."""
    ours = [logits(seed, 1) for seed in range(12)]
    theirs = [values + 0.05 * (1 + seed) * logits(seed + 50, 1) for seed, values in enumerate(ours)]

    def width(repeats: int) -> float:
        found = compare_logits(
            [from_logits(np.repeat(x, repeats, 0), VOCABULARY) for x in ours],
            [from_logits(np.repeat(x, repeats, 0), VOCABULARY) for x in theirs],
            VOCABULARY,
        )
        assert found.kl_interval[0] < found.kl < found.kl_interval[1]
        assert found.positions == 12 * repeats
        return found.kl_interval[1] - found.kl_interval[0]

    assert width(9) == pytest.approx(width(1), rel=1e-9)


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
    assert len(one.positions) == 8
    assert all(whole.loss[position + 1] for position in one.positions)
    assert not whole.loss[one.positions[0]], "the first prediction is made after the prompt's last token"
    assert whole.ids[one.positions[-1] + 1] == tokenizer.token_to_id("<turn|>")
    assert asked == [chat.chat_prompt_ids(tokenizer, question["messages"])]
    assert two.ids == asked[0] + [77] * 10
    assert two.positions[0] == len(asked[0]) - 1
    assert two.positions[-1] == len(two.ids) - 2
