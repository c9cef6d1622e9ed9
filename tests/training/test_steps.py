"""Which rows a step takes, and how they lie in its passes: nothing lost, nothing doubled, the same on any number of
processes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from gemma_ops.data.row_tokens import NO_LOSS
from gemma_ops.training.forward_inputs import BOUNDS, Collate, TokenRows
from gemma_ops.training.steps import Layout, Steps, pack, pad


def lengths(count, seed=0, longest=2048):
    draw = random.Random(seed)
    return [min(longest, max(8, int(draw.lognormvariate(5.3, 0.9)))) for _ in range(count)]


@pytest.mark.parametrize("layout", [{}, {"micro_batch": 4}, {"batch_tokens": 6000}, {"micro_batch": 3, "batch": 7}])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_computed_once_an_epoch_by_one_process(layout, world):
    found = lengths(200)
    given = {"batch": 16, "seed": 5, **layout}
    mine = [Steps(found, Layout(**given, rank=rank, world=world)) for rank in range(world)]
    whole = list(Steps(found, Layout(**given)))
    dealt = list(zip(*mine, strict=True))
    assert len(dealt) == len(whole) == len(mine[0])
    for parts, step in zip(dealt, whole, strict=True):
        assert len({len(part.passes) for part in parts}) == 1, "a process would wait for one that is done"
        assert all(part.rows == step.rows for part in parts)
        rows = sorted(row for part in parts for one in part.passes for row in one)
        assert rows == sorted(step.rows)
    assert sorted(row for step in whole for row in step.rows) == list(range(200))


def test_epochs_differ_and_repeat():
    steps = Steps(lengths(50), Layout(batch=8, seed=1))
    first = [step.rows for step in steps]
    steps.set_epoch(1)
    assert [step.rows for step in steps] != first
    steps.set_epoch(0)
    assert [step.rows for step in steps] == first
    assert [step.rows for step in Steps(lengths(50), Layout(batch=8, seed=2))] != first


@pytest.mark.parametrize("seed", range(20))
def test_packing_is_nearly_as_tight_as_it_can_be_and_even(seed):
    found = lengths(random.Random(seed).randrange(4, 60), seed)
    passes = pack(range(len(found)), found, 2048)
    used = [sum(found[row] for row in one) for one in passes]
    assert max(used) <= 2048
    best = -(-sum(found) // 2048)
    assert len(passes) <= 11 / 9 * best + 1
    assert min(used) > 0
    assert sorted(row for one in passes for row in one) == list(range(len(found)))


def test_passes_are_evened_out():
    """Eight rows of 300 need two passes of at most 2,048: four each, not six and two."""
    assert [len(one) for one in pack(range(8), [300] * 8, 2048)] == [4, 4]


def test_a_row_longer_than_a_pass_has_one_to_itself():
    passes = pack(range(3), [5000, 100, 200], 1000)
    assert sorted(map(sorted, passes)) == [[0], [1, 2]]


def test_padded_passes_hold_rows_of_like_length():
    assert pad(range(5), [10, 50, 12, 48, 11], 2) == [[1, 3], [2, 4], [0]]
    assert pad(range(4), [1, 2, 3, 4], 2, multiple=3) == [[3, 2], [1, 0], []]


def test_padded_steps_that_would_be_one_pass_are_shared_by_all_processes():
    assert pad(range(4), [1, 2, 3, 4], 4) == [[3, 2, 1, 0]]
    assert pad(range(4), [1, 2, 3, 4], 4, multiple=2) == [[3, 2], [1, 0]]
    assert pad(range(1), [5], 4, multiple=2) == [[0], []]


def test_steps_of_a_token_budget_are_even_and_none_is_empty():
    found = [2000, *lengths(300)]
    steps = Steps(found, Layout(batch=1, batch_tokens=4000))
    sizes = [sum(found[row] for row in group) for group in steps.groups()]
    assert len(sizes) == len(steps)
    assert min(sizes) > 0
    assert max(sizes) <= 4000 + 2048
    assert abs(np.mean(sizes) - 4000) < 200


def row(ids, scored_from, weight=1.0):
    labels = [NO_LOSS] * scored_from + ids[scored_from:]
    return {"input_ids": ids, "labels": labels, "weight": weight}


def test_a_packed_pass_scores_each_document_by_itself():
    rows = [row([2, 10, 11, 12], 2), row([2, 20, 21], 0, weight=0.5)]
    batch = Collate(packing=True, bounds=True)([[rows], 4.0, 7])
    (one,) = batch.passes
    assert one["input_ids"].tolist() == [[2, 10, 11, 12, 2, 20, 21]]
    assert one["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert one[BOUNDS] == [0, 4, 7]
    assert "attention_mask" not in one
    assert one["where"].tolist() == [1, 2, 4, 5]
    assert one["targets"].tolist() == [11, 12, 20, 21], "the last token of a document predicts nothing"
    assert one["weights"].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert batch.divisor == 4.0


def test_a_padded_pass_scores_the_same():
    rows = [row([2, 10, 11, 12], 2), row([2, 20, 21], 0)]
    (one,) = Collate(packing=False, bounds=True, pad=9)([[rows], 4.0, 7]).passes
    assert one["input_ids"].tolist() == [[2, 10, 11, 12], [2, 20, 21, 9]]
    assert one["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert one["where"].tolist() == [1, 2, 4, 5]
    assert one["targets"].tolist() == [11, 12, 20, 21]
    assert "weights" not in one


def test_a_process_without_rows_computes_a_token_without_loss():
    for packing in (True, False):
        (one,) = Collate(packing=packing, bounds=True)([[[]], 2.0, 3]).passes
        assert one["input_ids"].numel() == 1
        assert one["where"].numel() == 0


def test_the_divisor_counts_scored_tokens_of_the_whole_step_by_weight():
    import datasets

    table = datasets.Dataset.from_dict(
        {
            "input_ids": [[2, 3, 4], [2, 5]],
            "labels": [[2, 3, 4], [NO_LOSS, 5]],
            "length": [3, 2],
            "weight": [1.0, 3.0],
            "scored": [2.0, 3.0],
        }
    )
    rows = TokenRows(table)
    (step,) = Steps(rows.lengths, Layout(batch=2, rank=1, world=2))
    passes, divisor, tokens = rows.__getitems__(step)
    assert sum(len(one) for one in passes) == 1
    assert (divisor, tokens) == (5.0, 5)
    assert torch.is_tensor(Collate(packing=True, bounds=False)([passes, divisor, tokens]).passes[0]["where"])
