"""Training, evaluation and serving ask with the same tokens: those of the checkpoint's own published template."""

from __future__ import annotations

import random
import shutil

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gemma_ops.answer import Prompt
from gemma_ops.data import chat, published
from gemma_ops.data.row_tokens import Manner
from gemma_ops.family.media import Senses
from gemma_ops.nano import WEIGHTS
from gemma_ops.targets.prompt_encoder import Encoder
from gemma_ops.targets.target import AskingMode
from tests.helpers import tiny_media
from tests.helpers.conversations import CONVERSATIONS, EMPTY, beginnings, conversation, templates

SIZES = templates()
ASK = {"role": "user", "content": "Q1"}
SAY = {"role": "assistant", "content": "A1"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
USED = [
    ASK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "42"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return chat.load_tokenizer(WEIGHTS)


def published_prompt(tokenizer, template, messages, tools, thinking):
    """What another renderer makes of the template, tokenized whole."""
    texts, _ = render_jinja_template(
        [list(messages)], tools=tools, chat_template=template, add_generation_prompt=True, bos_token="<bos>",
        enable_thinking=thinking,
    )  # fmt: skip
    return tokenizer.encode(texts[0], add_special_tokens=False).ids


def asked_at(messages):
    """The turns before each answer, as a client of the served model would send them."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            yield messages[:index]
            if message.get("tool_responses") and message["content"].strip():
                yield [*messages[:index], {**message, "content": ""}]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_answer_is_learned_after_the_published_prompt(tokenizer, size, thinking):
    draw = random.Random(f"{size} {thinking}")
    for number in range(CONVERSATIONS):
        messages, tools = conversation(draw)
        made = chat.examples(tokenizer, messages, tools, template=SIZES[size], thinking=thinking)
        found = [ids for one in made for ids in beginnings(one)]
        wanted = [published_prompt(tokenizer, SIZES[size], before, tools, thinking) for before in asked_at(messages)]
        assert sorted(found) == sorted(wanted), (number, messages)
        assert len(made) <= len(wanted)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_evaluation_asks_as_training_does(tokenizer, tmp_path, size, thinking):
    shutil.copyfile(WEIGHTS / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "chat_template.jinja").write_text(SIZES[size], encoding="utf-8")
    encode = Encoder(tmp_path, AskingMode(thinking=thinking))
    manner = Manner(template=published.template_of(tmp_path), thinking="on" if thinking else "off")
    draw = random.Random(f"{thinking} {size}")
    for _ in range(CONVERSATIONS):
        messages, tools = conversation(draw)
        learned = chat.encode_chat(tokenizer, messages, tools, **manner.of(messages))
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        asked = encode(Prompt(messages[:last], tools=tools or ()))
        assert beginnings(learned)[-1] == asked


@pytest.mark.parametrize("size", ["E2B", "31B"])
def test_images_stand_in_the_prompt_where_they_stand_in_training(tmp_path, size):
    kept = tiny_media.save("edge", tmp_path / "edge")
    (kept / "chat_template.jinja").write_text(SIZES[size], encoding="utf-8")
    tokenizer, senses = chat.load_tokenizer(kept), Senses.read(kept)
    draw = random.Random(3)
    for _ in range(CONVERSATIONS):
        messages, tools = conversation(draw, media=True)
        made = chat.examples(tokenizer, messages, tools, template=SIZES[size], senses=senses)
        wanted = [
            chat.prompt(tokenizer, before, tools, template=SIZES[size], senses=senses).ids
            for before in asked_at(messages)
        ]
        assert sorted(ids for one in made for ids in beginnings(one)) == sorted(wanted)
        assert all(one.types().count(1) == sum(b.end - b.start - 2 for b in one.blocks) for one in made)


def test_the_larger_sizes_show_an_empty_thought_at_the_prompts_end_alone(tokenizer):
    for size in ("12B", "26B-A4B", "31B"):
        first, second = chat.examples(tokenizer, [ASK, SAY, ASK, SAY], template=SIZES[size])
        assert first.text == f"<bos><|turn>user\nQ1<turn|>\n<|turn>model\n{EMPTY}A1<turn|>\n"
        assert second.text == (
            f"<bos><|turn>user\nQ1<turn|>\n<|turn>model\nA1<turn|>\n<|turn>user\nQ1<turn|>\n<|turn>model\n{EMPTY}A1<turn|>\n"
        )
        # The prompt after a tool's result has none, so the call and the answer are apart too.
        call, answer = chat.examples(tokenizer, [*USED, SAY], template=SIZES[size])
        assert EMPTY in call.text
        assert answer.text.endswith('response:f{value:<|"|>42<|"|>}<tool_response|>A1<turn|>\n')
        assert EMPTY not in answer.text


def test_one_example_holds_what_one_prompt_after_another_shows(tokenizer):
    (one,) = chat.examples(tokenizer, [ASK, SAY, *USED, SAY], template=SIZES["E2B"])
    assert len(beginnings(one)) == 3
    thought = [ASK, {**SAY, "reasoning": "r"}, ASK, SAY]
    assert len(chat.examples(tokenizer, thought, template=SIZES["E2B"], thinking=True)) == 2


def test_a_thought_that_the_prompt_opens_is_closed_by_the_model(tokenizer):
    template = SIZES["E2B"]
    answered = chat.encode_chat(tokenizer, [*USED, SAY], template=template, thinking=True)
    assert answered.text.endswith("<tool_response|><|channel>thought\n<channel|>A1<turn|>\n")
    said = [token for token, loss in zip(answered.ids, answered.loss, strict=True) if loss]
    assert tokenizer.decode(said, skip_special_tokens=False).endswith("<|tool_response><channel|>A1<turn|>")
    thought = chat.encode_chat(tokenizer, [*USED, {**SAY, "reasoning": "so"}], template=template, thinking=True)
    assert thought.text.endswith("<|channel>thought\nso\n<channel|>A1<turn|>\n")


def test_two_answers_in_a_row_are_asked_for_one_after_the_other(tokenizer):
    (one,) = chat.examples(tokenizer, [ASK, SAY, {"role": "assistant", "content": "A2"}], template=SIZES["E2B"])
    assert one.text.endswith("<|turn>model\nA1<turn|>\n<|turn>model\nA2<turn|>\n")


def test_text_beside_calls_is_not_learned_where_no_prompt_ends(tokenizer):
    beside = [ASK, {**USED[1], "content": "Let me see."}, USED[2], SAY]
    scored = [
        tokenizer.decode([t for t, loss in zip(one.ids, one.loss, strict=True) if loss], skip_special_tokens=False)
        for one in chat.examples(tokenizer, beside, template=SIZES["E2B"])
    ]
    assert all("Let me see." not in text for text in scored)
    assert scored[-1].endswith("A1<turn|>")


def test_known_templates_are_known_and_others_are_compared():
    assert published.template_name(SIZES["E2B"]) == "Google's template of E2B and E4B of 2026-07-09"
    assert published.template_name(SIZES["12B"]) == published.OURS
    assert published.template_told(SIZES["E2B"]) == []
    (unknown,) = published.template_told(SIZES["26B-A4B"])
    assert unknown.startswith("the checkpoint's chat template is none that gemma-ops knows")
    assert unknown.endswith("all probes are asked alike")
    odd = SIZES["E2B"].replace("'<turn|>\\n'", "'<turn|>'")
    told = published.template_told(odd)
    assert "of 14 probes are asked otherwise" in told[0]
    assert any("where ours has" in line for line in told[1:])
