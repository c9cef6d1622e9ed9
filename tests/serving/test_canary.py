"""An engine that serves something else than was evaluated is caught before it takes traffic, whatever the difference
is."""

from __future__ import annotations

import json
import struct

import pytest

from gemma_ops.data import chat, published
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.errors import ConfigError, GateError, ModelError
from gemma_ops.modeling.llamacpp import GGUF
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.nano import WEIGHTS, tickets
from gemma_ops.serving.model import ServedModel
from gemma_ops.serving.serving_canary import CanaryResult, read_answers
from gemma_ops.wire.ask import Ask, RefusalError
from tests.helpers.live_server import make_files, record, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def rows(files):
    """Sixteen questions with what nano says, and a base that says something else."""
    tokenizer, template = load_tokenizer(WEIGHTS), published.template_of(WEIGHTS)
    found = []
    with GGUF(files / "q8_0" / "model.gguf", threads=1) as model:
        for row in tickets.test_rows(16, 1):
            messages = [{"role": "user", "content": row["prompt"]}]
            prompt = chat.chat_prompt_ids(tokenizer, messages, template=template)
            (answer,) = model.answer([prompt], tokenizer, max_new_tokens=32, batch_size=1)
            found.append(
                {
                    "messages": messages,
                    "tools": [],
                    "ids": prompt,
                    "max_new_tokens": 32,
                    "answers": {"q8_0": answer.text, "base": "no"},
                }
            )
    return found


def refused(files, canary, match, file=None, **options):
    with (
        pytest.raises(GateError, match=match),
        serving(file or files / "q8_0" / "model.gguf", recorded=canary, **options),
    ):
        pass


def test_the_model_that_was_evaluated_serves(files, rows, tmp_path):
    with serving(files / "q8_0" / "model.gguf", recorded=record(tmp_path / "canary.json", rows)) as live:
        assert "of 16 recorded answers came back word for word" in live.service.facts.canary


def test_weights_that_say_what_only_the_base_says(files, rows, tmp_path):
    """An adapter that was not applied, and base weights: what was recorded of the tuned model isn't what comes back."""
    other = [row | {"answers": {"q8_0": "tuned", "base": row["answers"]["q8_0"]}} for row in rows]
    refused(files, record(tmp_path / "canary.json", other), r"0 of 16 .* what only its base says")


def test_another_versions_file(files, rows, tmp_path):
    """The same shape with other numbers: one matrix of the file is scaled."""
    body = bytearray((files / "bf16" / "model.gguf").read_bytes())
    size = len(body)
    for place in range(size // 2, size - 4000, 64):
        body[place + 1] ^= 0x01
    (tmp_path / "model.gguf").write_bytes(body)
    write_prompting(tmp_path, Prompting.of("off", (WEIGHTS / "chat_template.jinja").read_text()))
    refused(files, record(tmp_path / "canary.json", rows), "recorded answers came back", file=tmp_path / "model.gguf")


def test_another_rope_in_the_metadata(files, rows, tmp_path):
    body = bytearray((files / "q8_0" / "model.gguf").read_bytes())
    for key in (b"gemma4.rope.freq_base", b"gemma4.rope.freq_base_swa"):
        place = body.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
        assert struct.unpack_from("<I", body, place)[0] == 6  # a 32-bit float
        struct.pack_into("<f", body, place + 4, 17.0)
    (tmp_path / "model.gguf").write_bytes(body)
    write_prompting(tmp_path, Prompting.of("off", (WEIGHTS / "chat_template.jinja").read_text()))
    refused(files, record(tmp_path / "canary.json", rows), "recorded answers came back", file=tmp_path / "model.gguf")


def test_thinking_left_on(files, rows, tmp_path):
    folder = tmp_path / "thinks"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(files / "q8_0" / "model.gguf")
    write_prompting(folder, Prompting.of("on", (WEIGHTS / "chat_template.jinja").read_text()))
    refused(files, record(tmp_path / "canary.json", rows), "16 of 16 prompts are not those", file=folder / "model.gguf")


def test_another_template(files, rows, tmp_path):
    other = [row | {"ids": [*row["ids"], 108]} for row in rows]
    refused(files, record(tmp_path / "canary.json", other), "16 of 16 prompts are not those of the evaluation")


def test_what_differs_is_only_told_where_that_is_asked_for(files, rows, tmp_path):
    other = [row | {"answers": {"q8_0": "something else"}} for row in rows]
    file = files / "q8_0" / "model.gguf"
    with serving(file, recorded=record(tmp_path / "canary.json", other), canary="reported") as live:
        assert live.service.facts.canary == "0 of 16 recorded answers came back word for word"


def test_a_record_that_is_none_is_told(tmp_path):
    path = tmp_path / "canary.json"
    for text in ("{", json.dumps({"schema": "other", "rows": []}), json.dumps({"schema": "gemma-ops/canary@1"})):
        path.write_text(text)
        with pytest.raises(ModelError, match="no record of answers"):
            read_answers(path, "q8_0")


@pytest.mark.parametrize(
    ("same", "as_base", "other", "repeats", "good"),
    [
        (16, 0, 0, 1, True), (13, 0, 0, 1, True), (12, 0, 0, 1, False), (15, 0, 1, 1, False), (13, 3, 0, 1, True),
        (0, 0, 0, 1, False),
        (12, 0, 0, 0.9, True), (11, 0, 0, 0.9, False), (8, 0, 0, 0.6, True), (7, 0, 0, 0.6, False),
        (16, 0, 0, 0.4, False),
    ],
)  # fmt: skip
def test_when_it_is_good(same, as_base, other, repeats, good):
    assert CanaryResult(16, same, as_base, other, repeats).good == good


def test_a_context_without_room_for_the_questions_is_told(files, rows, tmp_path):
    long = [rows[0] | {"ids": [5] * 64}]
    with (
        pytest.raises(ConfigError, match=r"questions take up to 64 tokens, and serve\.context is 64"),
        serving(files / "q8_0" / "model.gguf", recorded=record(tmp_path / "canary.json", long), context=64),
    ):
        pass


def test_a_record_of_other_formats_says_nothing_of_this_one(files, rows, tmp_path):
    other = record(tmp_path / "canary.json", [row | {"answers": {"q4_0": "x"}} for row in rows])
    with serving(files / "q8_0" / "model.gguf", recorded=other) as live:
        assert live.service.facts.canary == "nothing was recorded to compare with"


def test_a_format_that_repeats_itself_less_is_asked_for_less(tmp_path):
    rows = [{"answers": {"q8_0": "a"}}, {"answers": {"q8_0": "b", "q4_0": "c"}}]
    body = {"schema": "gemma-ops/canary@1", "rows": rows, "repeats": {"q8_0": {"asked": 8, "same": 7}}}
    (tmp_path / "canary.json").write_text(json.dumps(body))
    found = read_answers(tmp_path / "canary.json", "q8_0")
    assert (len(found.rows), found.repeats) == (2, 0.875)
    assert read_answers(tmp_path / "canary.json", "q4_0").repeats == 1  # of before
    assert CanaryResult(16, 15, 0, 0, 0.875).words == (
        "15 of 16 recorded answers came back word for word (asked twice, the evaluation repeated 88%)"
    )


def test_a_model_trained_in_one_mode_is_asked_in_no_other():
    class Engine:
        context, slots, senses = 256, 1, None

    ask = Ask(messages=[{"role": "user", "content": "a"}], thinking=True)
    with pytest.raises(RefusalError, match="thinking off"):
        ServedModel(WEIGHTS, Engine(), thinks=False).prompt(ask)
    assert ServedModel(WEIGHTS, Engine(), thinks=False, both=True).prompt(ask)
