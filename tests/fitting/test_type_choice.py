"""The knapsack of types: within its bytes, next to the best, one tensor a step."""

from __future__ import annotations

import itertools
import random

from gemma_ops.fitting.type_choice import TypeOption, choose_types, type_frontier

KINDS = ("IQ4_XS", "Q4_0", "Q5_0", "Q6_K", "Q8_0")


def options(seed: int, tensors: int = 6) -> dict[str, list[TypeOption]]:
    draw = random.Random(seed)
    made = {}
    for number in range(tensors):
        size, harm = draw.choice((32, 64, 256)), draw.uniform(0.1, 4)
        made[f"t{number}"] = [
            TypeOption(kind, size * bits, harm * draw.uniform(0.7, 1.3) * 4.0**-place)
            for place, (kind, bits) in enumerate(zip(KINDS, (17, 18, 22, 26, 34), strict=True))
        ]
    return made


def harm(choices, types) -> float:
    return sum(next(one.harm for one in choices[name] if one.type == kind) for name, kind in types.items())


def test_the_choice_is_within_one_step_of_the_best():
    for seed in range(12):
        choices = options(seed)
        least = sum(min(one.bytes for one in each) for each in choices.values())
        most = sum(max(one.bytes for one in each) for each in choices.values())
        room = (least + most) // 2
        found = choose_types(choices, room)
        assert found is not None
        assert found.bytes <= room
        assert found.bytes == sum(
            next(one.bytes for one in choices[name] if one.type == kind) for name, kind in found.types.items()
        )
        best = min(
            sum(one.harm for one in pick)
            for pick in itertools.product(*choices.values())
            if sum(one.bytes for one in pick) <= room
        )
        largest = max(max(one.harm for one in each) - min(one.harm for one in each) for each in choices.values())
        assert best <= harm(choices, found.types) <= best + largest / 4


def test_more_bytes_never_harm():
    choices = options(3)
    frontier = type_frontier(choices)
    assert [mix.bytes for mix in frontier] == sorted({mix.bytes for mix in frontier})
    harms = [harm(choices, mix.types) for mix in frontier]
    assert harms == sorted(harms, reverse=True)
    changed = [sum(one.types[name] != two.types[name] for name in choices) for one, two in itertools.pairwise(frontier)]
    assert set(changed) == {1}


def test_the_ends_are_the_smallest_file_and_the_most_exact():
    choices = options(4)
    frontier = type_frontier(choices)
    assert frontier[0].bytes == sum(min(one.bytes for one in each) for each in choices.values())
    assert harm(choices, frontier[-1].types) == sum(min(one.harm for one in each) for each in choices.values())
    assert choose_types(choices, frontier[0].bytes - 1) is None
    assert choose_types(choices, frontier[0].bytes).types == frontier[0].types


def test_a_type_that_is_larger_and_no_better_is_never_taken():
    choices = {"t": [TypeOption("Q4_0", 18, 1.0), TypeOption("Q5_0", 22, 1.5), TypeOption("Q8_0", 34, 0.9)]}
    assert [mix.types["t"] for mix in type_frontier(choices)] == ["Q4_0", "Q8_0"]
