"""Our chat template as plain Python: the same text and the same spans, some twenty times as fast as Jinja in a sandbox.

It knows the shapes of conversations that rows have; of any other it returns nothing, and the template itself is
rendered, or refuses. The two are held equal by random conversations of every shape (`tests/data`), and a published
template that renders the same bytes is named here by its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemma_ops.data.written_tools import Unfamiliar, declaration, literal, name_of, text_of_key

Message = dict[str, Any]
Pieces = tuple[list[str], list[bool]]

_THOUGHT = "<|channel>thought\n"
_THOUGHT_END = "\n<channel|>"
_RESPONSE = "<|tool_response>"
_PLACES = {
    "image": "<|image|>", "image_url": "<|image|>", "audio": "<|audio|>", "input_audio": "<|audio|>",
    "video": "<|video|>",
}  # fmt: skip
_VARIABLES = frozenset(("add_generation_prompt", "enable_thinking", "preserve_thinking", "empty_thought"))


def written(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, bos: str, variables: dict[str, Any]
) -> Pieces | None:
    """Return the pieces of a rendering, and whether the model itself emits each; None for a shape that isn't known.

    `variables` are the template's; one that it doesn't have is a shape that isn't known.
    """
    if not variables.keys() <= _VARIABLES:
        return None
    try:
        return _Writer(messages, tools, bos, **variables).pieces()
    except (Unfamiliar, AttributeError, KeyError, RecursionError, TypeError):
        return None


class _Writer:
    """One rendering: what was said so far, who spoke last, and what the last turn ended in."""

    def __init__(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        bos: str,
        *,
        add_generation_prompt: bool = False,
        enable_thinking: bool = False,
        preserve_thinking: bool = False,
        empty_thought: bool = False,
    ) -> None:
        self.texts: list[str] = [bos]
        self.emitted: list[bool] = [False]
        self.turns = messages
        self.tools = tools
        self.asks = add_generation_prompt
        self.thinking = enable_thinking
        self.keeps = preserve_thinking
        self.prefill = empty_thought and not enable_thinking
        self.speaker = ""
        self.tail = ""
        """What the last turn ended in: "", a "call" that waits for its response, or a "response"."""

    def pieces(self) -> Pieces:
        for message in self.turns:
            if type(message) is not dict or type(message["role"]) is not str or not message["role"]:
                raise Unfamiliar
        self._system()
        users = [index for index, turn in enumerate(self.turns) if turn["role"] == "user"]
        last_user = users[-1] if users else -1
        for index, message in enumerate(self.turns):
            if message["role"] != "tool":
                self._turn(index, message, last_user)
        if self.asks and self.tail == "":
            self._put("<|turn>model\n" + (_THOUGHT + "<channel|>" if self.prefill else ""))
        elif self.asks and self.tail == "response" and self.thinking:
            self._put(_THOUGHT)
        return self.texts, self.emitted

    def _put(self, text: str, *, emitted: bool = False) -> None:
        self.texts.append(text)
        self.emitted.append(emitted)

    def _system(self) -> None:
        """Write the system turn: the thinking switch, instructions, tools."""
        turns = self.turns
        instructed = bool(turns) and turns[0]["role"] in ("system", "developer")
        if not (self.thinking or self.tools or instructed):
            return
        said = "<|turn>system\n" + ("<|think|>\n" if self.thinking else "")
        if instructed:
            said += _instructions(turns[0].get("content"))
            self.turns = turns[1:]
        for tool in self.tools or ():
            said += "<|tool>" + declaration(tool) + "<tool|>"
        self._put(said + "<turn|>\n")

    def _turn(self, index: int, message: Message, last_user: int) -> None:
        role = "model" if message["role"] == "assistant" else message["role"]
        by_model = role == "model"
        calls = message.get("tool_calls")
        if calls is not None and type(calls) is not list:
            raise Unfamiliar
        if not (by_model and self.speaker == "assistant"):
            self._put(f"<|turn>{role}\n")
        thought = message.get("reasoning") or message.get("reasoning_content")
        if thought and (index > last_user or (self.keeps and calls)):
            self._thought(thought, by_model=by_model)
        if calls:
            self._put("".join(map(_call, calls)), emitted=True)
        replied = self._replies(index, message, calls)
        said = _body(message.get("content"), by_model=by_model)
        self._put(said, emitted=by_model)
        self._close(index, silent=not said.strip(), by_model=by_model, calls=bool(calls), replied=replied)
        self.speaker = message["role"]

    def _thought(self, thought: Any, *, by_model: bool) -> None:
        """Write a thought; after a response the prompt itself opens the channel when thinking is on."""
        if type(thought) is not str:
            raise Unfamiliar
        if by_model and self.thinking and self.tail == "response":
            self._put(_THOUGHT)
            self._put(thought + _THOUGHT_END, emitted=True)
        else:
            self._put(_THOUGHT + thought + _THOUGHT_END, emitted=by_model)

    def _replies(self, index: int, message: Message, calls: list[Any] | None) -> bool:
        """Write the responses to a message's calls, which stand on it or in the tool turns after it; True where there
        is one."""
        replied = False
        if own := message.get("tool_responses"):
            if type(own) is not list:
                raise Unfamiliar
            for item in own:
                self._put(_RESPONSE, emitted=bool(calls) and not replied)
                self._put(_reply(_named(item.get("name")), item["response"]))
                replied = True
            return replied
        if not calls:
            return False
        for item in self.turns[index + 1 :]:
            if item["role"] != "tool":
                break
            name = _named(item.get("name"))
            for call in calls:
                if call.get("id") == item.get("tool_call_id"):
                    name = name_of(call["function"])
            self._put(_RESPONSE, emitted=not replied)
            self._put(_result(name, item.get("content")))
            replied = True
        return replied

    def _close(self, index: int, *, silent: bool, by_model: bool, calls: bool, replied: bool) -> None:
        """Write what ends a turn: a call without a response hands over, the next assistant message goes on in the same
        turn, all else closes it; only a response that nothing follows stays open."""
        if calls and not replied:
            self._put(_RESPONSE, emitted=True)
            self.tail = "call"
            return
        self.tail = "response" if replied else ""
        following = next((turn["role"] for turn in self.turns[index + 1 :] if turn["role"] != "tool"), "")
        if (by_model and following == "assistant") or (replied and silent and following == ""):
            return
        if by_model and not (replied and silent):
            self._put("<turn|>", emitted=True)
            self._put("\n")
        else:
            self._put("<turn|>\n")


def _instructions(content: Any) -> str:
    if type(content) is str:
        return content.strip()
    if type(content) is not list:
        raise Unfamiliar
    return "".join(text_of_key(part, "text").strip() + " " for part in content)


def _shown(text: str, *, by_model: bool) -> str:
    """Return text as it is shown: the model's own loses every channel in it, closed or not."""
    if by_model and ("<channel|>" in text or "<|channel>" in text):
        text = "".join(piece.split("<|channel>")[0] for piece in text.split("<channel|>"))
    return text.strip()


def _body(content: Any, *, by_model: bool) -> str:
    if type(content) is str:
        return _shown(content, by_model=by_model)
    if content is None:
        return ""
    if type(content) is not list:
        raise Unfamiliar
    said = ""
    for part in content:
        if part.get("type") == "text":
            said += _shown(text_of_key(part, "text"), by_model=by_model)
        else:
            said += _placeholder(part.get("type"))
    return said


def _placeholder(kind: Any) -> str:
    if type(kind) is not str:
        raise Unfamiliar
    return _PLACES.get(kind, "")


def _call(call: Any) -> str:
    arguments = call["function"]["arguments"]
    if arguments is not None and type(arguments) is not dict:
        raise Unfamiliar
    given = "{}" if arguments is None else literal(arguments, quote_keys=False)
    return f"<|tool_call>call:{name_of(call['function'])}{given}<tool_call|>"


def _named(name: Any) -> str:
    if name and type(name) is not str:
        raise Unfamiliar
    return name or "unknown"


def _reply(name: str, response: Any) -> str:
    """Return what follows the `<|tool_response>` token: an object field by field, anything else as `value`."""
    said = literal(response, quote_keys=False)
    return f"response:{name}{said if type(response) is dict else '{value:' + said + '}'}<tool_response|>"


def _result(name: str, content: Any) -> str:
    """Return a tool turn as a response: its texts as one value, then what it shows."""
    if content is None or type(content) is str:
        return _reply(name, content)
    if type(content) is not list:
        raise Unfamiliar
    texts = [text_of_key(part, "text") for part in content if part.get("type") == "text"]
    return _reply(name, "".join(texts)) + "".join(_placeholder(part.get("type")) for part in content)
