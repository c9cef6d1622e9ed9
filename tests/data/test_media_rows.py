"""Rows that show something on their way through `prepare` and `data check`: every spelling one, bad files told, changes
noticed."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
import sys

import pytest

from gemma_ops.config import DataConfig, MachineConfig
from gemma_ops.data.import_rows import Importer
from gemma_ops.data.named_files import named
from gemma_ops.errors import DataError
from gemma_ops.family.media import Pictures, Senses, Sounds
from gemma_ops.prepare import check_html, prepare
from gemma_ops.prepare.check_rows import check_source
from tests.helpers import media_rows, tiny_media
from tests.helpers.media_rows import encoded, png, tone, wav

CPU = MachineConfig(device="cpu", mlflow=None)
ALL = Senses(Pictures(8, 2, 70), Sounds())
RED, HIGH = png("red", random.Random(1)), wav(tone("high", random.Random(2), 0.2))
ANSWER = {"role": "assistant", "content": "Yes."}


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    return tiny_media.save("edge", tmp_path_factory.mktemp("edge"))


def imported(tmp_path, *rows, senses=ALL, **settings):
    """What the importer makes of rows beside a red picture and a high sound."""
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "high.wav").write_bytes(HIGH)
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(Importer(source, DataConfig(**settings), senses))


def uri(data, kind):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asked(*content, **columns):
    return {"messages": [{"role": "user", "content": list(content)}, ANSWER], **columns}


TEXT = {"type": "text", "text": "Red?"}
IMAGE = {"type": "image", "path": f"media/{hashlib.sha256(RED).hexdigest()}.png", "width": 40, "height": 32}
SOUND = {"type": "audio", "path": f"media/{hashlib.sha256(HIGH).hexdigest()}.wav", "samples": 3200}
SPELLINGS = {
    "transformers": asked({"type": "image", "path": "red.png"}, TEXT),
    "transformers, a url": asked({"type": "image", "url": "red.png"}, TEXT),
    "openai": asked({"type": "image_url", "image_url": {"url": uri(RED, "image/png")}}, TEXT),
    "trl, in a column": asked({"type": "image"}, TEXT, images=["red.png"]),
    "llava, a tag": {"messages": [{"role": "user", "content": "<image>\nRed?"}, ANSWER], "images": ["red.png"]},
    "no place": {"messages": [{"role": "user", "content": "Red?"}, ANSWER], "image": "red.png"},
    "arrow": {"messages": [{"role": "user", "content": "Red?"}, ANSWER], "image": {"bytes": None, "path": "red.png"}},
    "prompt and completion": {"prompt": "Red?", "completion": "Yes.", "image": "red.png"},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_an_image_is_one(tmp_path, name):
    (item,) = imported(tmp_path, SPELLINGS[name])
    assert item.example, item.reason
    assert item.example["messages"][0]["content"] == [IMAGE, TEXT]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "path": "high.wav"},
        {"type": "audio_url", "audio_url": {"url": "high.wav"}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(HIGH).decode(), "format": "wav"}},
    ],
)
def test_every_spelling_of_a_sound_is_one(tmp_path, part):
    (item,) = imported(tmp_path, asked(part, TEXT))
    assert item.example["messages"][0]["content"] == [SOUND, TEXT]


def long(seconds):
    return wav([0.0] * int(16_000 * seconds))


BAD = {
    "unreadable_media, cut off": (RED[:200], "image", "red.png: the image can't be decoded"),
    "unreadable_media, another thing": (b"hello", "image", "it is no image that can be read"),
    "unreadable_media, a cut sound": (HIGH[:100], "audio", "the WAV file is cut off"),
    "unreadable_media, no sound": (b"hello", "audio", "it is no sound that can be read"),
    "media_too_long": (long(31), "audio", "longer than the 30 s that Gemma 4 hears"),
    "media_too_short": (long(0.005), "audio", "it gives not one token"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_with_its_name(tmp_path, name):
    data, kind, words = BAD[name]
    file = "bad.png" if kind == "image" else "bad.wav"
    (tmp_path / file).write_bytes(data)
    (item,) = imported(tmp_path, asked({"type": kind, "path": file}, TEXT))
    assert item.example is None
    assert item.code == name.split(",")[0]
    assert file in item.reason
    assert words.removeprefix("red.png: ") in item.reason


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        (asked({"type": "image", "path": "gone.png"}, TEXT), "no_media", "gone.png can't be read"),
        (asked({"type": "image"}, TEXT), "media_count", "and the row names 0"),
        (asked({"type": "image", "url": "https://x.org/a.png"}, TEXT), "remote_media", "nothing is fetched"),
        (asked({"type": "image"}, TEXT, images=["red.png"] * 2), "media_count", "places for 1 image files"),
        (asked({"type": "video", "path": "a.mp4"}, TEXT), "video", "videos are not"),
        (asked({"type": "text", "text": "<|image|> Red?"}), "control_token", "<|image|>"),
        (asked({"type": "image", "url": "data:image/png;base64,%%"}, TEXT), "unreadable_media", "not base64"),
        (
            {"prompt": "Red?", "chosen": "Yes.", "rejected": "No.", "images": ["red.png"]},
            "compared_media",
            "which no method learns from",
        ),
    ],
)
def test_what_can_not_be_shown_is_told(tmp_path, row, code, words):
    (item,) = imported(tmp_path, row)
    assert (item.example, item.code) == (None, code), item.reason
    assert words in item.reason


def test_what_the_model_does_not_take_and_what_is_too_large_is_told(tmp_path):
    sound = asked({"type": "audio", "path": "high.wav"}, TEXT)
    (item,) = imported(tmp_path, sound, senses=Senses(Pictures(8, 2, 70)))
    assert item.code == "wrong_modality"
    (item,) = imported(tmp_path, SPELLINGS["transformers"], max_media_mb=1e-4)
    assert item.code == "media_too_large"
    (item,) = imported(tmp_path, SPELLINGS["openai"], max_media_mb=1e-4)
    assert item.code == "media_too_large"


def prepared(root, folder, model, **settings):
    out = root / "data"
    out.mkdir(parents=True)
    source = folder / "rows.jsonl"
    settings = {"path": str(source), "valid_share": 0.25, "privacy": "local_only"} | settings
    metrics = prepare(out, DataConfig(**settings), CPU, source=source, model=model)
    rows = {side: [json.loads(line) for line in (out / f"{side}.jsonl").open()] for side in ("train", "valid")}
    return out, metrics, rows


def test_prepare_keeps_the_files_of_its_rows_and_no_others(tmp_path, edge):
    source = tmp_path / "source"
    found = media_rows.write(source, "image", 8, seed=1)
    lines = (source / "rows.jsonl").read_text().splitlines()
    # The first picture twice, asked differently; the second row again, word for word; one with a file that is gone.
    again = json.loads(lines[0])
    again["messages"][0]["content"][1]["text"] = "Say what you see on this picture, in one word."
    lines += [json.dumps(again), lines[1], lines[2].replace(found[2][0], "files/gone.png")]
    (source / "rows.jsonl").write_text("\n".join(lines) + "\n")
    out, metrics, rows = prepared(tmp_path, source, edge, max_bad_share=0.2)
    assert metrics["exact_duplicates"] == 1
    assert metrics["rejected"] == 1
    assert len(rows["train"]) + len(rows["valid"]) == 9, "the same question about another picture is another row"
    kept = {part["path"] for side in rows.values() for row in side for part in row["messages"][0]["content"][:1]}
    assert {f"media/{file.name}" for file in (out / "media").iterdir()} == kept
    assert len(kept) == 8
    for name in kept:
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == name[6:-4]
    groups = [{row["group"] for row in side} for side in rows.values()]
    assert not groups[0] & groups[1], "rows about one picture stay together"
    shown = [row["group"] for side in rows.values() for row in side]
    assert len(set(shown)) == 8
    assert all(row["privacy"] == "local_only" for side in rows.values() for row in side)
    report = json.loads((out / "report.json").read_text())
    assert report["media"]["image"]["files"] == 8
    assert report["media"]["image"]["shown"] == 9
    assert "## Images and audio" in (out / "card.md").read_text()


def test_an_id_covers_the_bytes_of_what_is_shown(tmp_path):
    (before,) = imported(tmp_path, SPELLINGS["transformers"])
    (tmp_path / "other.png").write_bytes(png("red", random.Random(2)))
    (after,) = imported(tmp_path, asked({"type": "image", "path": "other.png"}, TEXT))
    (inline,) = imported(tmp_path, SPELLINGS["openai"])
    assert before.example["id"] == inline.example["id"], "wherever the bytes come from"
    assert before.example["id"] != after.example["id"]


def test_a_changed_picture_is_changed_data(tmp_path):
    """`Reads.shown` is what a step's digest covers beside the rows' files."""
    imported(tmp_path, SPELLINGS["transformers"], SPELLINGS["trl, in a column"], asked(TEXT))
    assert named([tmp_path / "rows.jsonl"]) == (tmp_path / "red.png",)
    from gemma_ops.config import RunConfig
    from gemma_ops.recipes.inputs import rows_read
    from gemma_ops.runs.run import Run

    config = RunConfig(
        name="r", recipe="lora", data=DataConfig(path=str(tmp_path / "rows.jsonl")),
        machine=MachineConfig(runs=str(tmp_path / "runs"), mlflow=None), evaluate={"tasks": ["support_desk"]},
    )  # fmt: skip
    with Run(config) as run:
        first = run._digest(rows_read(config))
    (tmp_path / "red.png").write_bytes(png("red", random.Random(3)))
    with Run(config) as run:
        second = run._digest(rows_read(config))
    assert first != second


def test_a_picture_of_the_evaluation_is_not_trained_on(tmp_path, edge):
    media_rows.write(tmp_path / "source", "image", 4, seed=1)
    task = media_rows.task(tmp_path / "task", "image", 4, seed=1)
    out = tmp_path / "data"
    out.mkdir()
    source = tmp_path / "source/rows.jsonl"
    with pytest.raises(DataError, match="the same file is shown"):
        prepare(out, DataConfig(path=str(source)), CPU, source=source, model=edge, tasks=(task,))


def test_check_shows_where_an_image_stands_and_what_is_wrong(tmp_path, edge):
    media_rows.write(tmp_path, "image", 3, seed=1)
    file = tmp_path / "files/1-0.png"
    file.write_bytes(file.read_bytes()[:150])
    source = tmp_path / "rows.jsonl"
    found = check_source(DataConfig(path=str(source)), source=source, model=edge, max_length=512)
    assert found.totals == {"unreadable_media": 1}
    good = [row for row in found.rows if row.tokens]
    assert len(good) == 2
    for row in good:
        ((kind, count),) = row.shown
        assert kind == "image"
        assert (f"<|image|> x {count}", False) in row.tokens
        assert row.count == len(row.tokens) + count + 1, "begin, soft tokens and end are one entry"
    page = check_html.check_page(found)
    assert page.count("&lt;|image|&gt; x") == 2
    assert "the image can&#x27;t be decoded" in page
    assert found.to_json()["rows"][1]["media"] == [["image", good[0].shown[0][1]]]


def test_a_row_that_does_not_fit_is_cut_before_its_image(tmp_path, edge):
    media_rows.write(tmp_path, "image", 1, seed=1)
    source = tmp_path / "rows.jsonl"
    found = check_source(DataConfig(path=str(source)), source=source, model=edge, max_length=30)
    assert set(found.totals) == {"no_loss", "truncated"}
    assert not any("<|image|>" in text for text, _ in found.rows[0].tokens)
    assert found.rows[0].count < 30


def test_jpegs_turn_as_they_say_and_transparency_is_white():
    from PIL import Image

    from gemma_ops.data import pictures

    wide = Image.new("RGB", (8, 4), "red")
    wide.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise by 90 degrees
    data = encoded(wide, "JPEG", exif=exif, quality=95)
    assert pictures.picture_facts(data)[1:] == (4, 8)
    upright = pictures.picture(data)
    assert upright.size == (4, 8)
    assert upright.getpixel((2, 1))[2] > 200, "the left side is on top"
    clear = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))
    assert pictures.picture(clear).getpixel((0, 0)) == (255, 255, 255)


def test_text_alone_needs_no_pillow():
    code = (
        "import sys, gemma_ops.cli, gemma_ops.data, gemma_ops.data.import_rows, gemma_ops.tasks.task;"
        "print([name for name in ('PIL', 'soundfile', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
