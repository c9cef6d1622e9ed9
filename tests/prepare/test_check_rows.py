"""`data check`: the exact tokens, each warning by its code, and the three ways to show it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from gemma_ops.config import DataConfig
from gemma_ops.data import chat
from gemma_ops.errors import DataError
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare.check_html import check_page
from gemma_ops.prepare.check_rows import check_source
from gemma_ops.prepare.check_text import check_lines
from gemma_ops.prepare.row_findings import CODES

ASK = {"role": "user", "content": "Where is my card?"}
SAY = {"role": "assistant", "content": "On its way."}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "x"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.fixture
def look(tmp_path):
    """Check conversations, each a row, with nano's tokenizer and our own template beside it."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenizer.json").write_bytes((WEIGHTS / "tokenizer.json").read_bytes())

    def go(*rows, template=None, max_length=None, limit=1000, thinking="off", **settings):
        (model / "chat_template.jinja").write_text(chat.inference_template() if template is None else template)
        path = tmp_path / "rows.jsonl"
        path.write_text(
            "".join(
                (row if isinstance(row, str) else json.dumps({"messages": row} if isinstance(row, list) else row))
                + "\n"
                for row in rows
            )
        )
        return check_source(
            DataConfig(path=str(path), **settings),
            source=path,
            model=model,
            max_length=max_length,
            limit=limit,
            thinking=thinking,
        )

    return go


def test_a_good_row_has_nothing_to_complain_about(look):
    result = look([{"role": "system", "content": "Be brief."}, ASK, SAY, ASK, CALLING, RESULT, SAY])
    assert result.totals == {}
    assert list(check_lines(result))[-1] == "nothing to complain about"
    assert (result.checked, result.more, result.layout) == (1, False, "messages")


CASES = {
    "reasoning_without_thinking": [ASK, {**SAY, "reasoning": "r"}],
    "stripped_channel": [ASK, {"role": "assistant", "content": "a <|channel>b<channel|> c"}],
    "think_tags": [ASK, {"role": "assistant", "content": "<think>hm</think>Yes."}],
    "content_beside_calls": [ASK, {**CALLING, "content": "Let me see."}, RESULT, SAY],
    "white_space": [ASK, {"role": "assistant", "content": " Yes."}],
    "consecutive_users": [ASK, ASK, SAY],
    "assistant_first": [SAY, ASK, SAY],
    "system_later": [ASK, SAY, {"role": "system", "content": "s"}, ASK, SAY],
    "arguments_parsed": [
        ASK,
        {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        RESULT,
        SAY,
    ],
    "thinking_switch": [{"role": "system", "content": "<|think|>\nBe brief."}, ASK, SAY],
    "reasoning_renamed": [ASK, {**SAY, "thinking": "r"}],
    "channel_moved": [ASK, {"role": "assistant", "content": "<|channel>thought\nr\n<channel|>Yes."}],
    "parts_joined": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, SAY],
    "call_ids_made": [
        ASK,
        {**CALLING, "tool_calls": [{"function": CALL["function"]}]},
        {"role": "tool", "content": "x"},
        SAY,
    ],
    "field_dropped": [ASK, {**SAY, "mood": "good"}],
    "tools_parsed": {"messages": [ASK, SAY], "tools": json.dumps([{"name": "f"}])},
    "pii": [{"role": "user", "content": "I am ana@example.org"}, SAY],
    "doubled_bos": [{"role": "user", "content": "<bos>hi"}, SAY],
    "no_assistant": [ASK],
    "bad_json": "{",
}


@pytest.mark.parametrize("code", CASES)
def test_each_thing_to_know_is_told_once_with_row_place_and_fix(look, code):
    thinks = code in ("reasoning_renamed", "channel_moved")
    result = look([ASK, SAY], CASES[code], thinking="on" if thinks else "off")
    assert result.totals == {code: 1}
    found = next(item for item in result.findings if item.code == code)
    assert (found.code, found.where) == (code, "rows.jsonl:2")
    assert found.row == ("rejected" if found.level == "error" else result.rows[1].id)
    assert found.what
    assert found.fix or found.level == "note"


def test_cut_rows_are_told(look):
    whole = look([ASK, SAY])
    total, with_loss = whole.lengths["row"]["max"], whole.lengths["completion"]["max"]
    result = look([ASK, SAY], max_length=total - 2)  # the line break and <turn|>
    assert result.totals == {"no_stop_token": 1, "truncated": 1}
    assert result.truncated == 1
    assert result.lengths == whole.lengths  # lengths are those of the whole rows
    assert len(result.rows[0].tokens) == total - 2
    result = look([ASK, SAY], max_length=total - 1 - with_loss)
    assert set(result.totals) == {"no_loss", "truncated"}
    assert result.findings[-1].level == "error" or result.findings[0].level == "error"
    assert look([ASK, SAY], max_length=total).totals == {}


def test_a_template_that_nobody_knows_is_told_and_compared(look):
    result = look([ASK, SAY], template=chat.inference_template().replace("'<turn|>\\n'", "'<turn|>'"))
    assert result.totals == {}
    assert "none that gemma-ops knows" in list(check_lines(result))[1]
    assert any("where ours has" in line for line in result.template)
    assert "<turn|><|turn>model" in "".join(token for token, _ in result.rows[0].tokens)
    assert look([ASK, SAY]).template == ()
    assert "refuses" in look([ASK, SAY], template="{{ raise_exception('no') }}").findings[0].what


def test_thoughts_are_told_by_the_mode_they_are_trained_in(look):
    thought = [ASK, {**SAY, "reasoning": "r"}, ASK, SAY]
    assert look(thought).totals == {"reasoning_without_thinking": 1, "answers_apart": 1}
    # A prompt that closes the thought before the answer leaves no place for one.
    large = look(thought, template=chat.inference_template(empty_thought=True))
    assert large.totals == {"thought_left_out": 1, "answers_apart": 1}
    assert "r\n<channel|>" not in "".join(token for token, _ in large.rows[0].tokens)
    # Each thought is learned, although later prompts don't show it.
    on = look(thought, thinking="on")
    assert on.totals == {"answers_apart": 1}
    assert on.examples == 2
    assert next(check_lines(on)) == "1 row, 2 examples, layout messages"
    assert "r\n<channel|>" in "".join(token for token, _ in on.rows[0].tokens)
    assert look(thought, thinking="mixed").totals == on.totals
    assert look([ASK, SAY, ASK, SAY], thinking="mixed").totals == {}


def test_the_larger_sizes_train_with_their_empty_thought(look):
    large = (
        "{{ bos_token }}{% if add_generation_prompt %}{{ '<|turn>model\n<|channel>thought\n<channel|>' }}{% endif %}"
    )
    result = look([ASK, SAY], template=large)
    assert result.totals == {}
    assert result.examples == 1
    text = "".join(token for token, _ in result.rows[0].tokens)
    assert "<|turn>model\n<|channel>thought\n<channel|>On its way.<turn|>" in text
    assert "".join(token for token, loss in result.rows[0].tokens if loss) == "On its way.<turn|>"


def test_characters_without_a_token_are_told(look, tmp_path):
    look([ASK, SAY])
    path = tmp_path / "model" / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["byte_fallback"] = False
    path.write_text(json.dumps(state))
    assert look([ASK, {"role": "assistant", "content": "卡"}]).totals == {"unknown_token": 1}


def test_tokens_join_to_the_text_and_show_what_carries_loss(look):
    result = look([ASK, {"role": "assistant", "content": "Yes 😀."}])
    tokens = result.rows[0].tokens
    shown = [text for text, _ in tokens if not text.startswith("<0x")]
    assert "".join(shown) == "<bos><|turn>user\nWhere is my card?<turn|>\n<|turn>model\nYes 😀.<turn|>\n"
    assert "".join(text for text, loss in tokens if loss and not text.startswith("<0x")) == "Yes 😀.<turn|>"


def test_the_limit_and_the_totals(look):
    result = look(*[[ASK, {**SAY, "content": f"{number} "}] for number in range(30)], limit=10)
    assert (result.checked, result.more, result.totals) == (10, True, {"white_space": 10})
    assert next(check_lines(result)) == "the first 10 rows, layout messages"
    assert any(
        line.startswith("note     white_space: 10 rows, first rows.jsonl:1") for line in list(check_lines(result))
    )


def test_errors_come_before_warnings_before_notes(look):
    result = look([ASK, {**SAY, "content": " x"}], [ASK, {**SAY, "content": " y"}], [SAY, ASK, SAY], [ASK])
    assert list(result.totals) == ["no_assistant", "assistant_first", "white_space"]


def test_json_is_json(look):
    body = json.loads(json.dumps(look([ASK, SAY], [ASK]).to_json()))
    assert body["findings"][0]["code"] == "no_assistant"
    assert body["rows"][0]["with_loss"] < body["rows"][0]["tokens"]
    assert body["tokens"]["row"]["max"] == body["rows"][0]["tokens"]


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.loss, self.text = [], [], "", ""
        self.inside = False

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "span":
            self.inside = ("class", "loss") in attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.loss += data
        self.inside = self.inside and bool(self.open) and self.open[-1] == "span"


def test_the_page_is_whole_self_contained_and_escaped(look):
    html = check_page(look([{"role": "user", "content": "<script>alert(1)</script> & co"}, SAY], "{", max_length=4000))
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.links == []
    assert "<script" not in html
    assert "<script>alert(1)</script> & co" in page.text.replace("⏎", "")
    assert page.loss == "On its way.<turn|>"
    assert "prefers-color-scheme: dark" in html
    assert "rows.jsonl:2" in page.text


def test_nothing_to_check_is_an_error(look):
    with pytest.raises(DataError, match="holds no rows"):
        look()


def test_every_code_says_what_and_how_bad():
    for level, what, fix in CODES.values():
        assert level in ("error", "warning", "note")
        assert what
        assert fix or level == "note"
