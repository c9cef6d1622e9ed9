"""Made-up images and sounds, rows about them, and tasks that ask about them: what the tests of multimodal training
share.

Colours are drawn with noise in a block on a background of another shade, pitches with a random phase and loudness, so
that no two files are the same and nothing but the colour or the pitch tells the answer.
"""

from __future__ import annotations

import io
import json
import random
import wave

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 190, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
PITCHES = {"low": 220.0, "high": 2600.0, "silence": 0.0}
RATE = 16_000


def png(colour, rng, size=(40, 32)):
    """A PNG of a colour: noisy, lighter or darker, with a grey frame on one side."""
    width, height = size
    pixels = np.tile(np.array(COLOURS[colour], dtype=np.float64), (height, width, 1)) * rng.uniform(0.75, 1.1)
    pixels += np.random.default_rng(rng.getrandbits(32)).normal(0, 18, pixels.shape)
    pixels[:, : rng.randrange(0, width // 4)] = rng.randrange(40, 200)
    return encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def encoded(image, form="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tone(pitch, rng, seconds=0.4, rate=RATE):
    """Samples of a pitch, with noise."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 0.004, len(time))
    loud = rng.uniform(0.2, 0.6) if PITCHES[pitch] else 0.0
    return noise + loud * np.sin(2 * np.pi * PITCHES[pitch] * rng.uniform(0.9, 1.1) * time + rng.uniform(0, 6))


def wav(samples, rate=RATE, channels=1, width=2):
    """The bytes of a PCM WAV file; `samples` in [-1, 1], shape (frames,) or (frames, channels)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        scaled = np.clip(samples, -1, 1) * (2 ** (8 * width - 1) - 1)
        out.writeframes(scaled.astype({1: np.int8, 2: "<i2", 4: "<i4"}[width]).tobytes())
    return file.getvalue()


def row(kind, name, question, answer):
    """A training row in transformers' spelling."""
    content = [{"type": kind, "path": name}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def write(folder, kind, count, seed, *, question=None):
    """`rows.jsonl` and `count` files below `folder`; returns the rows as (file, answer)."""
    rng = random.Random(seed)
    names = list(COLOURS if kind == "image" else PITCHES)
    question = question or ("Which colour is this?" if kind == "image" else "Which pitch is this?")
    (folder / "files").mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        answer = names[number % len(names)]
        name = f"files/{seed}-{number}.{'png' if kind == 'image' else 'wav'}"
        (folder / name).write_bytes(png(answer, rng) if kind == "image" else wav(tone(answer, rng)))
        found.append((name, answer))
    lines = [json.dumps(row(kind, name, question, answer)) for name, answer in found]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return found


def task(folder, kind, count, seed, name="look"):
    """A task folder whose questions show files and whose answers are one word."""
    found = write(folder, kind, count, seed)
    question = "Which colour is this?" if kind == "image" else "Which pitch is this?"
    rows = [
        {
            "id": str(number),
            "prompt": question,
            f"{kind}s" if kind == "image" else kind: [file] if kind == "image" else file,
            "reference": answer,
        }
        for number, (file, answer) in enumerate(found)
    ]
    (folder / "rows.jsonl").unlink()
    (folder / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    (folder / "task.yaml").write_text(
        f"schema: gemma-ops/eval-task@1\nname: {name}\nversion: 1\ndata: {{path: data.jsonl}}\nprivacy: any\n"
        "generation: {max_new_tokens: 8}\nmetrics: [exact_match]\nprimary: exact_match\n"
    )
    return folder
