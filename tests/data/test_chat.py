"""The chat template against Google's, over a corpus and over random conversations; what carries loss; the contract."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from gemma_ops.data import chat
from gemma_ops.errors import DataError, ModelError

GOOGLE = Path(find_spec("trl").origin).parent / "chat_templates" / "gemma4_v5.jinja"

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What is the capital of France?"}
SAY = {"role": "assistant", "content": "Paris."}
MORE = {"role": "user", "content": "And of Spain?"}


def function(name="look_up", description="Finds a thing", **rest):
    return {"type": "function", "function": {"name": name, "description": description, **rest}}


def with_fields(required=None, **properties):
    parameters = {"type": "object", "properties": properties}
    if required is not None:
        parameters["required"] = required
    return [function(parameters=parameters)]


def call(name="look_up", arguments=None, **rest):
    return {"type": "function", "function": {"name": name, "arguments": {} if arguments is None else arguments}, **rest}


def calling(*calls, **rest):
    return {"role": "assistant", "content": "", "tool_calls": list(calls), **rest}


STRING = {"type": "string", "description": "a text"}
CORPUS = {
    "plain": ([ASK, SAY], None),
    "only a question": ([ASK], None),
    "multi-turn": ([ASK, SAY, MORE, {"role": "assistant", "content": "Madrid."}], None),
    "system": ([SYSTEM, ASK, SAY], None),
    "developer": ([{"role": "developer", "content": "Be brief."}, ASK, SAY], None),
    "system in the middle": ([ASK, SAY, SYSTEM, MORE, SAY], None),
    "two systems": ([SYSTEM, SYSTEM, ASK, SAY], None),
    "empty system": ([{"role": "system", "content": ""}, ASK, SAY], None),
    "system parts": ([{"role": "system", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]},
            ASK], None),
    "system only": ([SYSTEM], None),
    "role model": ([ASK, {"role": "model", "content": "Paris."}], None),
    "two users": ([ASK, MORE, SAY], None),
    "two assistants": ([ASK, SAY, {"role": "assistant", "content": "Really."}, MORE, SAY], None),
    "assistant first": ([SAY, ASK, SAY], None),
    "empty answer": ([ASK, {"role": "assistant", "content": ""}], None),
    "null answer": ([ASK, {"role": "assistant", "content": None}], None),
    "reasoning": ([ASK, {"role": "assistant", "reasoning": "Easy.", "content": "Paris."}], None),
    "reasoning_content": ([ASK, {"role": "assistant", "reasoning_content": " Easy.\n", "content": "Paris."}], None),
    "thinking key": ([ASK, {"role": "assistant", "thinking": "Easy.", "content": "Paris."}], None),
    "reasoning twice": ([ASK, {**SAY, "reasoning": "one"}, MORE, {**SAY, "reasoning": "two"}], None),
    "reasoning of a user": ([ASK, SAY, {"role": "system", "content": "x", "reasoning": "odd"}], None),
    "channel inline": ([ASK, {"role": "assistant", "content": "<|channel>thought\nhm\n<channel|>Paris."}], None),
    "channel in the middle": ([ASK, {"role": "assistant", "content": "A <|channel>x<channel|> B <channel|> C "
                                                                     "<|channel> D"}], None),
    "channel of a user": ([{"role": "user", "content": "what is <|channel>x<channel|>?"}, SAY], None),
    "think tags": ([ASK, {"role": "assistant", "content": "<think>hm</think>Paris."}], None),
    "white space": ([{"role": "user", "content": " \n hi\t\n"}, {"role": "assistant", "content": "\u00a0 yes \n\n"}],
        None),
    "unicode": ([{"role": "user", "content": "Größe 😀 你好 \u200d\u0301 ﷽"},
            {"role": "assistant", "content": "naïve 🇩🇪"}], None),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": " one "}, {"type": "image"},
                    {"type": "text", "text": "two"}]}, SAY], None),
    "media": ([{"role": "user", "content": [{"type": t} for t in ("image_url", "audio", "input_audio", "video",
                        "other")]}, SAY], None),
    "answer parts": ([ASK, {"role": "assistant", "content": [{"type": "text", "text": " a<|channel>b<channel|>c "},
                    {"type": "text", "text": "d"}]}], None),
    "tool without parameters": ([ASK, SAY], [function()]),
    "tool with empty parameters": ([ASK, SAY], [function(parameters={})]),
    "tool without type": ([ASK, SAY], [function(parameters={"properties": {"a": STRING}})]),
    "tool without description": ([SYSTEM, ASK, SAY], [{"type": "function",
                "function": {"name": "f", "parameters": {"type": "object"}}}]),
    "tool with required": ([ASK, SAY], with_fields(["b", "a"], b=STRING, a={"type": "integer"})),
    "tool with enum": ([ASK, SAY], with_fields(unit={"type": "string", "enum": ["c", "f", None, 3]},
            n={"type": "integer", "enum": [1, 2]})),
    "tool with nullable": ([ASK, SAY], with_fields(a={"type": "string", "nullable": True},
            b={"type": "number", "nullable": False})),
    "tool with array": ([ASK, SAY], with_fields(tags={"type": "array",
                "items": {"type": "string", "enum": ["x"], "maxLength": 3}, "description": "d"})),
    "tool with bare array": ([ASK, SAY], with_fields(tags={"type": "array"}, more={"type": "array", "items": {}})),
    "tool with array of objects": (
        [ASK, SAY],
        with_fields(rows={"type": "array",
                "items": {"type": "object", "properties": {"b": STRING, "A": {"type": "array",
                            "items": {"type": ["string", "null"]}}}, "required": ["b"], "title": None}}),
    ),
    "tool with array of arrays": ([ASK, SAY], with_fields(grid={"type": "array",
                "items": {"type": "array", "items": {"type": "number", "minimum": 0.5}}})),
    "tool with object": ([ASK, SAY],
        with_fields(place={"type": "object",
                "properties": {"city": STRING, "geo": {"type": "OBJECT", "properties": {"lat": {"type": "number"}},
                        "required": ["lat"]}}, "required": ["city"], "description": "where"})),
    "tool with odd object": ([ASK, SAY], with_fields(any={"type": "object", "additionalProperties": {"type": "string"},
                "title": "Any", "minProperties": 1, "description": "x"})),
    "tool with empty object": ([ASK, SAY], with_fields(any={"type": "object", "properties": {}},
            none={"type": "object"})),
    "tool with type list": ([ASK, SAY], with_fields(a={"type": ["string", "null"], "description": "maybe"},
            b={"description": "untyped"})),
    "tool with anyOf": ([ASK, SAY], with_fields(a={"anyOf": [{"type": "string"}, {"type": "null"}]})),
    "tool with response": ([ASK, SAY], [function(parameters={"type": "object"},
                response={"type": "object", "description": "r"}), function("g", response={"type": "string"})]),
    "tool with quotes": ([ASK, SAY], [function(description='say "hi" {now}\n<b>',
                parameters={"type": "object", "properties": {"ä b": {"type": "string", "description": "it's"}}})]),
    "two tools with system": ([SYSTEM, ASK, SAY], [function("a"),
            function("b", parameters={"type": "object", "properties": {"x": STRING}})]),
    "call": ([ASK, calling(call(arguments={"b": 2, "A": "x", "c": None, "d": True, "e": [1, "y", {"k": 1.5}],
                        "f": {"z": {}, "q": []}}))], None),
    "call without arguments": ([ASK, calling(call(arguments={}))], None),
    "call with null": ([ASK, calling({"function": {"name": "f", "arguments": None}})], None),
    "call and content": ([ASK, {**calling(call()), "content": "Let me look."}], None),
    "call and tool": ([ASK, calling(call(id="1")), {"role": "tool", "tool_call_id": "1", "content": "42"}, SAY],
        [function()]),
    "call and tool, open": ([ASK, calling(call(id="1")), {"role": "tool", "tool_call_id": "1", "content": "42"}],
        [function()]),
    "call and tool, then user": ([ASK, calling(call(id="1")), {"role": "tool", "tool_call_id": "1", "content": "42"},
            MORE, SAY], None),
    "call unanswered, then user": ([ASK, calling(call(id="1")), MORE, SAY], None),
    "call unanswered, then assistant": ([ASK, calling(call(id="1")), SAY], None),
    "parallel calls": (
        [ASK, calling(call("a", {"x": 1}, id="1"), call("b", id="2")), {"role": "tool", "tool_call_id": "2",
                "content": "two"}, {"role": "tool", "tool_call_id": "1", "content": "one"}, SAY],
        None,
    ),
    "calls without ids": ([ASK, calling(call("a"), call("b")), {"role": "tool", "content": "x"},
            {"role": "tool", "name": "z", "content": "y"}, SAY], None),
    "tool with unknown id": ([ASK, calling(call(id="1")), {"role": "tool", "tool_call_id": "9", "content": "x"},
            {"role": "tool", "tool_call_id": "9", "name": "n", "content": "x"}, SAY], None),
    "tool without call": ([ASK, SAY, {"role": "tool", "content": "lost"}, MORE, SAY], None),
    "tool content parts": ([ASK, calling(call(id="1")),
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": " a "}, {"type": "image"},
                    {"type": "text", "text": "b"}, {"type": "video"}]}, SAY], None),
    "tool content null and number": ([ASK, calling(call(id="1"), call(id="2")), {"role": "tool", "tool_call_id": "1",
                "content": None}, {"role": "tool", "tool_call_id": "2", "content": 3}, SAY], None),
    "tool_responses": ([ASK, {**calling(call()), "tool_responses": [{"name": "look_up",
                        "response": {"b": 1, "A": {"c": "d"}}}, {"response": "text"}]}, SAY], None),
    "tool_responses with content": ([ASK, {**calling(call()), "tool_responses": [{"name": "f", "response": [1, 2]}],
                "content": "Done."}], None),
    "tool_responses alone": ([ASK, {"role": "assistant", "tool_responses": [{"name": "f", "response": True}]}], None),
    "chain of calls": (
        [ASK, calling(call(id="1"), reasoning="first"), {"role": "tool", "tool_call_id": "1", "content": "1"},
            calling(call(id="2"), reasoning="second"), {"role": "tool", "tool_call_id": "2", "content": "2"},
            {**SAY, "reasoning": "third"}],
        [function()],
    ),
    "old calls with reasoning": ([ASK, calling(call(id="1"), reasoning="first"),
            {"role": "tool", "tool_call_id": "1", "content": "1"}, SAY, MORE, SAY], None),
    "no messages": ([], None),
    "no messages but tools": ([], [function()]),
}  # fmt: skip

MODES = [
    {"add_generation_prompt": prompt, "enable_thinking": thinking, "preserve_thinking": keep}
    for prompt in (False, True)
    for thinking in (False, True)
    for keep in (False, True)
]


@pytest.fixture(scope="module")
def google():
    return GOOGLE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def google_by_jinja(google):
    """Google's template with a comment behind it: one that is rendered by Jinja, since nobody knows its bytes."""
    return google + "{#- -#}"


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def small_tokenizer() -> Tokenizer:
    """A BPE tokenizer with Gemma's structure; it never merges over a line break."""
    control = [*chat.STRUCTURE, "<pad>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=[*control, *(f"<0x{i:02X}>" for i in range(256))])
    words = (
        "thought model user system What is the capital of France And of Spain Paris Madrid Be brief call response value"
    )
    tokenizer.train_from_iterator([*words.split(), " a "] * 5, trainer)
    return tokenizer


@pytest.mark.parametrize("name", CORPUS)
def test_renders_as_google_does(name, google_by_jinja):
    messages, tools = CORPUS[name]
    for mode in MODES:
        expected = chat.render_template(google_by_jinja, messages, tools, **mode).text
        assert chat.render_template(chat.training_template(), messages, tools, **mode).text == expected, mode
        assert chat.render_template(chat.inference_template(), messages, tools, **mode).text == expected, mode


def random_value(draw, depth=0):
    kinds = [None, True, False, 0, -1.5, "", "a b", 'q"\n', "Ä😀"]
    if depth > 2 or draw.random() < 0.6:
        return draw.choice(kinds)
    if draw.random() < 0.5:
        return [random_value(draw, depth + 1) for _ in range(draw.randrange(3))]
    return {draw.choice("aBcD"): random_value(draw, depth + 1) for _ in range(draw.randrange(4))}


def random_schema(draw, depth=0):
    schema = {
        "type": draw.choice(["string", "STRING", "integer", "array", "object", "boolean", ["string", "null"], None])
    }
    if schema["type"] is None:
        del schema["type"]
    extras = {"description": "d", "nullable": True, "enum": ["a", 1], "title": "T", "default": 3, "format": None}
    schema |= {key: value for key, value in extras.items() if draw.random() < 0.3}
    if draw.random() < 0.5 and depth < 3:
        schema["properties"] = {draw.choice("xYz"): random_schema(draw, depth + 1) for _ in range(draw.randrange(3))}
    if draw.random() < 0.3:
        schema["required"] = draw.sample(["x", "Y", "z"], draw.randrange(3))
    if draw.random() < 0.5 and depth < 3:
        schema["items"] = random_schema(draw, depth + 1)
    return schema


def random_conversation(draw):
    messages = []
    for _ in range(draw.randrange(1, 9)):
        role = draw.choice(["user", "assistant", "assistant", "tool", "system", "model", "developer"])
        text = draw.choice(["", " hi ", "a\nb", "x <|channel>y<channel|> z", "<channel|>", "tail <|channel> open"])
        parts = [{"type": "text", "text": text}, {"type": draw.choice(["image", "audio", "video", "pdf"])}]
        message = {"role": role, "content": draw.choice([text, text, parts, None])}
        if role == "system" and message["content"] is parts:
            message["content"] = text
        if role in ("assistant", "model"):
            if draw.random() < 0.4:
                calls = [call(draw.choice("fg"), {"k": random_value(draw)}) for _ in range(draw.randrange(1, 3))]
                for number, item in enumerate(calls):
                    if draw.random() < 0.6:
                        item["id"] = str(number)
                message["tool_calls"] = calls
            if draw.random() < 0.2:
                message["tool_responses"] = [
                    {"name": draw.choice([None, "f"]), "response": random_value(draw)} for _ in range(2)
                ]
            if draw.random() < 0.4:
                message[draw.choice(["reasoning", "reasoning_content"])] = draw.choice(["why\n", "", "because"])
        if role == "tool":
            message.update(draw.choice([{}, {"tool_call_id": "0"}, {"tool_call_id": "1"}, {"name": "g"}]))
        messages.append(message)
    tools = [function(parameters=random_schema(draw))] if draw.random() < 0.4 else None
    return messages, tools


def test_renders_random_conversations_as_google_does(google_by_jinja):
    draw = random.Random(4)
    for number in range(400):
        messages, tools = random_conversation(draw)
        mode = draw.choice(MODES)
        expected = chat.render_template(google_by_jinja, messages, tools, **mode).text
        got = chat.render_template(chat.training_template(), messages, tools, **mode).text
        assert got == expected, (number, json.dumps(messages), json.dumps(tools), mode)


def test_transformers_renders_both_templates_alike(google):
    """transformers' own renderer: the inference template gives the text, the training template the same spans as
    ours."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def theirs(template, messages, tools, **rest):
        return render_jinja_template([messages], tools=tools, chat_template=template, bos_token="<bos>", **rest)

    for name, (messages, tools) in CORPUS.items():
        if not messages or name == "thinking key":  # transformers itself renames that key before rendering
            continue
        ours = chat.render_chat(messages, tools)
        assert theirs(chat.inference_template(), messages, tools)[0] == [ours.text], name
        texts, spans = theirs(chat.training_template(), messages, tools, return_assistant_tokens_mask=True)
        assert texts == [ours.text]
        marked = {index for start, end in spans[0] for index in range(start, end)}
        assert marked == {index for start, end in ours.spans for index in range(start, end)}, name
        with_prompt = theirs(
            chat.inference_template(), messages, tools, add_generation_prompt=True, enable_thinking=True
        )[0]
        assert with_prompt == [chat.render_chat(messages, tools, add_generation_prompt=True, thinking=True).text]


def emitted(messages, tools=None, **options):
    rendered = chat.render_chat(messages, tools, **options)
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_only_what_the_model_emits_carries_loss():
    assert emitted([SYSTEM, ASK, SAY, MORE, {"role": "assistant", "content": " Madrid.\n"}]) == [
        "Paris.<turn|>",
        "Madrid.<turn|>",
    ]
    assert emitted([ASK, {**SAY, "reasoning": "Easy."}]) == ["<|channel>thought\nEasy.\n<channel|>Paris.<turn|>"]
    # Two messages of one turn are one emission.
    assert emitted([ASK, SAY, {"role": "assistant", "content": "Really."}]) == ["Paris.Really.<turn|>"]
    assert emitted([ASK, {"role": "model", "content": "Paris."}]) == ["Paris.<turn|>"]
    assert emitted([ASK]) == []


def test_calls_hand_over_with_loss_and_bodies_have_none():
    calls = calling(call("a", {"x": 1}, id="1"), call("b", id="2"))
    said = "<|tool_call>call:a{x:1}<tool_call|><|tool_call>call:b{}<tool_call|><|tool_response>"
    assert emitted([ASK, calls]) == [said]
    answers = [{"role": "tool", "tool_call_id": number, "content": "secret"} for number in "12"]
    assert emitted([ASK, calls, *answers, SAY]) == [said, "Paris.<turn|>"]
    assert emitted([ASK, {**calls, "tool_responses": [{"name": "a", "response": {"k": 1}}] * 2}, SAY]) == [
        said,
        "Paris.<turn|>",
    ]
    # A response that only a user follows: the model said nothing after it, so the closing token isn't its own.
    assert emitted([ASK, calls, *answers, MORE, SAY]) == [said, "Paris.<turn|>"]


def test_a_thought_the_prompt_opens_has_no_loss_on_its_opening():
    messages = [
        ASK,
        calling(call(id="1")),
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {**SAY, "reasoning": "so"},
    ]
    assert emitted(messages, thinking=True)[-1] == "so\n<channel|>Paris.<turn|>"
    assert emitted(messages)[-1] == "<|channel>thought\nso\n<channel|>Paris.<turn|>"
    prompt = chat.render_chat(messages[:-1], add_generation_prompt=True, thinking=True).text
    assert chat.render_chat(messages, thinking=True).text.startswith(prompt)


def test_empty_thought_ends_the_prompt_and_stands_nowhere_else():
    empty = "<|channel>thought\n<channel|>"
    assert empty not in chat.render_chat([ASK, SAY, MORE, SAY], empty_thought=True).text
    assert emitted([ASK, SAY], empty_thought=True) == ["Paris.<turn|>"]
    assert chat.render_chat([ASK], add_generation_prompt=True, empty_thought=True).text.endswith(
        "<|turn>model\n" + empty
    )
    # Thinking mode has none, nor has a turn that goes on after a response.
    assert empty not in chat.render_chat([ASK, SAY], thinking=True, empty_thought=True, add_generation_prompt=True).text
    used = [ASK, calling(call(id="1")), {"role": "tool", "tool_call_id": "1", "content": "42"}]
    assert empty not in chat.render_chat(used, empty_thought=True, add_generation_prompt=True).text


def test_string_arguments_are_refused_with_the_reason():
    with pytest.raises(DataError, match="must be an object, not a JSON string"):
        chat.render_chat([ASK, calling(call(arguments='{"a": 1}'))])


def test_llama_cpp_takes_the_inference_template_for_googles_current_one(google):
    """It decides by these two pieces of the source whether to rewrite tool results (chat.cpp)."""
    for piece in ("'<|tool_call>call:'", "{#- OpenAI Chat Completions:"):
        assert piece in google
        assert piece in chat.inference_template()


def test_inference_template_has_no_markers_and_the_training_template_does():
    assert "generation -%}" in chat.training_template()
    assert "generation -%}" not in chat.inference_template()


@pytest.mark.parametrize("empty_thought", [False, True])
def test_encode_marks_tokens_and_prompts_are_prefixes(tokenizer, empty_thought):
    messages = [SYSTEM, ASK, SAY, MORE, {"role": "assistant", "content": "Größe 😀"}]
    encoded = chat.encode_chat(tokenizer, messages, empty_thought=empty_thought)
    assert encoded.ids.count(tokenizer.token_to_id("<bos>")) == 1
    assert not encoded.truncated
    kept = [token for token, loss in zip(encoded.ids, encoded.loss, strict=True) if loss]
    # The prompt of the second answer shows the first one without its empty thought: it is an example of its own.
    earlier = "" if empty_thought else "Paris.<turn|>"
    assert tokenizer.decode(kept, skip_special_tokens=False) == earlier + "Größe 😀<turn|>"
    prompt = chat.chat_prompt_ids(tokenizer, messages[:-1], empty_thought=empty_thought)
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.loss[len(prompt)] is True


def test_encode_cuts_at_max_length(tokenizer):
    whole = chat.encode_chat(tokenizer, [ASK, SAY])
    cut = chat.encode_chat(tokenizer, [ASK, SAY], max_length=len(whole.ids) - 3)
    assert cut.truncated
    assert cut.ids == whole.ids[:-3]
    assert cut.loss == whole.loss[:-3]
    assert not chat.encode_chat(tokenizer, [ASK, SAY], max_length=len(whole.ids)).truncated


def test_prompts_end_where_answers_begin_whatever_the_tokenizer_merges():
    """A tokenizer that merges the line break before an answer with its first letter: the prompt has no such token, and
    the model says the letter as a token of its own."""
    tokenizer = small_tokenizer()
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] = {**state["model"]["vocab"], "\n": 460, "\nP": 461}
    state["model"]["merges"] = [["\n", "P"], *state["model"]["merges"]]
    merging = Tokenizer.from_str(json.dumps(state))
    prompt = chat.chat_prompt_ids(merging, [ASK])
    encoded = chat.encode_chat(merging, [ASK, SAY])
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.loss[: len(prompt) + 1] == [False] * len(prompt) + [True]
    # In a later prompt the two are one token, so that prompt doesn't begin with the first answer as it was said.
    assert len(chat.examples(merging, [ASK, SAY, MORE, SAY])) == 2


def test_load_tokenizer_finds_it_and_refuses_others(tmp_path, tokenizer):
    for place in ("plain", "artifact/weights", "merged/model"):
        (tmp_path / place).mkdir(parents=True)
        tokenizer.save(str(tmp_path / place / "tokenizer.json"))
        found = chat.load_tokenizer(tmp_path / place.split("/")[0])
        assert found.token_to_id("<|turn>") == tokenizer.token_to_id("<|turn>")
    tokenizer = small_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    (tmp_path / "cutting").mkdir()
    tokenizer.save(str(tmp_path / "cutting" / "tokenizer.json"))
    assert len(chat.encode_chat(chat.load_tokenizer(tmp_path / "cutting"), [ASK, SAY]).ids) > 10
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        chat.load_tokenizer(tmp_path)
    other = Tokenizer(models.BPE(unk_token="<unk>"))
    other.add_special_tokens(["<unk>", "<bos>"])
    (tmp_path / "other").mkdir()
    other.save(str(tmp_path / "other" / "tokenizer.json"))
    with pytest.raises(ModelError, match="not a Gemma 4 tokenizer"):
        chat.load_tokenizer(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="can't be read"):
        chat.load_tokenizer(tmp_path / "other")
