"""Drawn forms: a generator of small pictures of filled-in forms and of the JSON that says what stands in each.

A form has four blocks in a grid: two boxes, a bar of five parts, a coloured seal, a number of three digits. The
arrangements of the blocks and the numbers of the questions occur in no training row, so a model that memorised its rows
fails the questions. Pictures are drawn pixel by pixel from the seed; Pillow only writes them.

`python -m gemma_ops.nano.forms FOLDER [COUNT]` writes training rows; `python -m gemma_ops.nano.forms eval/drawn_forms
--questions` writes those of the shipped task again.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

ASK = (
    "Read this form as JSON. left, right: is that box ticked? level: how many of its five parts the bar has filled. "
    "colour, shape: those of the seal. number: the three digits."
)
"""The question about every form."""
COLOURS = {"red": (214, 40, 40), "green": (34, 150, 60), "blue": (40, 80, 210), "yellow": (238, 200, 30)}
SHAPES = ("circle", "square", "triangle", "diamond")
PARTS = 5
"""Parts of the bar."""
WIDTH, HEIGHT = 128, 96
"""Size of a form in pixels."""
BLOCKS = ("boxes", "bar", "seal", "number")
ARRANGEMENTS = tuple(permutations(BLOCKS))
"""Every order of the blocks, from top left to bottom right; each fourth is kept for questions."""
_GLYPHS = (
    "0111010001100111010111001100010111000100011000010000100001000010001110"
    "0111010001000010001000100010001111111111000100010000010000011000101110"
    "0001000110010101001011111000100001011111100001111000001000011000101110"
    "0011001000100001111010001100010111011111000010001000100010000100001000"
    "0111010001100010111010001100010111001110100011000101111000010001001100"
)
"""The ten digits, each seven rows of five pixels."""
_PAPER, _INK, _SEAL, _FILL = range(4)


@dataclass(frozen=True)
class DrawnForm:
    """What stands in a form, and how its blocks are arranged."""

    left: bool
    right: bool
    level: int
    colour: str
    shape: str
    number: str
    arrangement: tuple[str, ...]

    @property
    def answer(self) -> str:
        """Return the JSON that says what stands in the form."""
        keys = ("left", "right", "level", "colour", "shape", "number")
        return json.dumps({key: getattr(self, key) for key in keys})


def make_form(rng: random.Random, *, question: bool = False) -> DrawnForm:
    """Draw what stands in a form; those of questions have arrangements and numbers of their own."""
    kept = [order for place, order in enumerate(ARRANGEMENTS) if (place % 4 == 3) is question]
    number = rng.choice([value for value in range(1000) if (value % 5 == 2) is question])
    return DrawnForm(
        left=rng.random() < 0.5,
        right=rng.random() < 0.5,
        level=rng.randint(0, PARTS),
        colour=rng.choice(tuple(COLOURS)),
        shape=rng.choice(SHAPES),
        number=f"{number:03d}",
        arrangement=rng.choice(kept),
    )


def draw_form(item: DrawnForm, rng: random.Random) -> bytes:
    """Return the form as PNG of four colours, `WIDTH` x `HEIGHT`; places, tones and kinds of ticks vary with `rng`."""
    from PIL import Image

    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    canvas[[0, -1]] = canvas[:, [0, -1]] = _INK
    draw = {"boxes": _boxes, "bar": _bar, "seal": _seal, "number": _number}
    for place, block in enumerate(item.arrangement):
        top, left = HEIGHT // 2 * (place // 2), WIDTH // 2 * (place % 2)
        cell = canvas[top + 2 : top + HEIGHT // 2 - 2, left + 2 : left + WIDTH // 2 - 2]
        draw[block](cell, item, rng)
    image = Image.fromarray(canvas).convert("P")
    image.putpalette(_palette(item, rng))
    file = io.BytesIO()
    image.save(file, "PNG", bits=2, optimize=True)
    return file.getvalue()


def _palette(item: DrawnForm, rng: random.Random) -> list[int]:
    paper = rng.randint(225, 255)
    ink = rng.randint(0, 70)
    bright = rng.randint(85, 110)
    seal = [min(value * bright // 100, 255) for value in COLOURS[item.colour]]
    grey = rng.randint(95, 135)
    return [paper] * 3 + [ink] * 3 + seal + [grey] * 3


def _boxes(cell: np.ndarray, item: DrawnForm, rng: random.Random) -> None:
    side, top, left = rng.randint(17, 21), rng.randint(5, 18), rng.randint(3, 8)
    for place, ticked in ((left, item.left), (left + side + rng.randint(7, 9), item.right)):
        box = cell[top : top + side, place : place + side]
        box[:2] = box[-2:] = _INK
        box[:, :2] = box[:, -2:] = _INK
        if ticked:
            _tick(box, side, cross=rng.random() < 0.5)


def _tick(box: np.ndarray, side: int, *, cross: bool) -> None:
    """Draw a cross, or a hook whose short arm is a third of the box."""
    for step in range(4, side - 4):
        if cross:
            box[step, step - 1 : step + 2] = _INK
            box[step, side - step - 2 : side - step + 1] = _INK
        else:
            row = side - 5 - abs(step - side // 3)
            box[max(row - 1, 3) : row + 2, step] = _INK


def _bar(cell: np.ndarray, item: DrawnForm, rng: random.Random) -> None:
    part, height, top, left = rng.randint(8, 10), rng.randint(12, 18), rng.randint(5, 24), rng.randint(2, 7)
    for place in range(PARTS):
        one = cell[top : top + height, left + place * part : left + (place + 1) * part + 1]
        one[:] = _INK
        one[1:-1, 1:-1] = _FILL if place < item.level else _PAPER


def _seal(cell: np.ndarray, item: DrawnForm, rng: random.Random) -> None:
    radius = rng.randint(13, 18)
    rows, columns = np.mgrid[: cell.shape[0], : cell.shape[1]]
    down = rows - rng.randint(20, 23)
    right = columns - rng.randint(22, 37)
    inside = {
        "circle": down**2 + right**2 <= radius**2,
        "square": np.maximum(abs(down), abs(right)) <= radius - 2,
        "triangle": (abs(right) * 2 <= down + radius) & (down <= radius),
        "diamond": abs(down) + abs(right) <= radius,
    }
    cell[inside[item.shape]] = _SEAL


def _number(cell: np.ndarray, item: DrawnForm, rng: random.Random) -> None:
    scale, top, left = 3, rng.randint(3, 20), rng.randint(2, 8)
    for place, digit in enumerate(item.number):
        bits = _GLYPHS[int(digit) * 35 : int(digit) * 35 + 35]
        glyph = np.array([int(bit) for bit in bits], np.uint8).reshape(7, 5).repeat(scale, 0).repeat(scale, 1)
        here = cell[top : top + 7 * scale, left + place * 18 : left + place * 18 + 5 * scale]
        here[glyph == 1] = _INK


def write_rows(folder: Path, count: int, seed: int = 1) -> Path:
    """Write `count` training rows to `rows.jsonl`, in OpenAI's message format, with their pictures in `forms/`, and
    return the file."""
    lines = []
    for name, item in _drawn(folder, f"train-{seed}", count, question=False):
        shown = [{"type": "image", "path": name}, {"type": "text", "text": ASK}]
        lines.append({"messages": [{"role": "user", "content": shown}, {"role": "assistant", "content": item.answer}]})
    return _write(folder / "rows.jsonl", lines)


def write_questions(folder: Path, count: int, seed: int = 1) -> Path:
    """Write the questions of the task, `data.jsonl` with `forms/`, as they are shipped, and return the file."""
    lines = [
        {"id": f"form-{number:03d}", "prompt": ASK, "images": [name], "reference": item.answer,
         "first_block": item.arrangement[0]}
        for number, (name, item) in enumerate(_drawn(folder, f"test-{seed}", count, question=True))
    ]  # fmt: skip
    return _write(folder / "data.jsonl", lines)


def _drawn(folder: Path, seed: str, count: int, *, question: bool) -> list[tuple[str, DrawnForm]]:
    rng = random.Random(seed)
    (folder / "forms").mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        item, name = make_form(rng, question=question), f"forms/{number:04d}.png"
        (folder / name).write_bytes(draw_form(item, rng))
        found.append((name, item))
    return found


def _write(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def main(words: Sequence[str] | None = None) -> None:
    """Write rows or questions, as the command line says."""
    parser = argparse.ArgumentParser("python -m gemma_ops.nano.forms", description="Draw forms, with the JSON of each.")
    parser.add_argument("folder", type=Path, help="gets rows.jsonl (or data.jsonl), and pictures in forms/")
    parser.add_argument("count", type=int, nargs="?", help="how many; by default 2,000 rows or 120 questions")
    parser.add_argument("--questions", action="store_true", help="the task's questions instead of training rows")
    given = parser.parse_args(words)
    count = given.count or (120 if given.questions else 2000)
    print((write_questions if given.questions else write_rows)(given.folder, count))


if __name__ == "__main__":
    main()
