"""The job that asks LiteRT-LM itself what it makes of a file: the tokens of texts, the prompts of conversations, where
replies stop, whether tools are taken; and how fast it is."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_ops.errors import GateError
from gemma_ops.toolenvs.jobs.answer_edge import greedy, open_engine

_FIX = "make the format again with --redo quantize; if it repeats, leave it out of quantize.formats"
_SPEED_TOKENS = 32


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Check `model`: `probes` are {text, ids}, `conversations` {messages, tools, prompt}, `stops` token ids. Returns
    seconds to load, tokens a second, peak memory in bytes, versions. Raises GateError where the runtime reads another
    text or renders another prompt than the checkpoint's tokenizer and template, or knows other stops."""
    import litert_lm

    began = time.monotonic()
    with open_engine(request["model"], request["room"], request["threads"]) as engine:
        seconds = time.monotonic() - began
        check_tokens(request["probes"], engine.tokenize)
        known = sorted(number for group in engine.eos_token_ids for number in group)
        if known != sorted(request["stops"]):
            raise GateError(f"LiteRT-LM ends replies at {known}, the checkpoint at {sorted(request['stops'])}", _FIX)
        for each in request["conversations"]:
            tools = [_declared(litert_lm, tool) for tool in each["tools"]]
            *before, last = each["messages"]
            with engine.create_conversation(
                messages=before or None, tools=tools or None, automatic_tool_calling=False, sampler_config=greedy(),
                max_output_tokens=1,
            ) as conversation:  # fmt: skip
                check_prompt(each["prompt"], conversation.render_message_to_string(last["content"]))
        began = time.monotonic()
        with engine.create_session(
            apply_prompt_template=False, sampler_config=greedy(), max_output_tokens=_SPEED_TOKENS
        ) as session:
            session.run_prefill([request["conversations"][0]["prompt"].removeprefix("<bos>")])
            first = time.monotonic()
            said = session.run_decode().texts[0]
        written = max(1, len(engine.tokenize(said)))
    return {
        "load_seconds": seconds, "first_seconds": first - began,
        "tokens_per_second": written / max(1e-6, time.monotonic() - first),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "runtime": importlib.metadata.version("litert-lm"), "processor": platform.processor() or platform.machine(),
    }  # fmt: skip


def check_tokens(probes: Sequence[Mapping[str, Any]], tokenize: Any) -> None:
    """Compare the runtime's tokens with the checkpoint's. Raises GateError naming the first text that differs."""
    for probe in probes:
        if (read := list(tokenize(probe["text"]))) != probe["ids"]:
            raise GateError(
                f"LiteRT-LM reads {probe['text']!r} as {read}, the checkpoint's tokenizer as {probe['ids']}", _FIX
            )


def check_prompt(wanted: str, rendered: str) -> None:
    """Compare a prompt of the runtime with the one the model was trained on; the runtime puts `<bos>` before it by
    itself. Raises GateError with both."""
    if rendered.removeprefix("<bos>") != wanted.removeprefix("<bos>"):
        raise GateError(f"LiteRT-LM asks {rendered!r}, and the model was trained on {wanted!r}", _FIX)


def _declared(library: Any, declaration: Mapping[str, Any]) -> Any:
    class Declared(library.Tool):  # type: ignore[misc]
        def get_tool_description(self) -> Mapping[str, Any]:
            return declaration

        def execute(self, param: Mapping[str, Any]) -> Any:
            return {}

    return Declared()
