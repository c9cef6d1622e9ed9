"""The logs of lm-evaluation-harness and Inspect in one shape: which question, which answer.

A log repeats the documents it was made from, so nothing has to be taken on trust: what was asked stands next to what
was said. How an answer ended, the harness does not tell, and some of Inspect's model providers don't; such an answer
counts as ended by itself, and its `reason` says that nobody knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.answer import Answer, End
from gemma_ops.errors import DataError, MachineError

UNTOLD = "the log does not say how this answer ended"
_ENDS: dict[str, End] = {
    "stop": "stop", "tool_calls": "stop", "max_tokens": "length", "model_length": "length", "content_filter": "blocked",
}  # fmt: skip


@dataclass(frozen=True)
class LoggedReply:
    """One answer of a log. `prompt` is the text the model read, where the log has it; `asked` the conversation."""

    row: str
    task: str
    version: int
    asked: list[dict[str, str]]
    prompt: str | None
    limit: int | None
    """Tokens after which the answer would have been cut, where the log says so."""
    choices: tuple[str, ...] | None
    """Replies that were ranked by likelihood, where the answer is the most likely of them."""
    answer: Answer


def read_log(path: Path) -> list[LoggedReply]:
    """Read all answers of a log: `samples_*.jsonl` of the harness, `.eval` or `.json` of Inspect. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path} does not exist", "give a samples_*.jsonl of lm_eval --log_samples, or an Inspect log")
    if path.suffix == ".jsonl":
        return list(_samples(path))
    if path.suffix == ".json" and path.name.startswith("results_"):
        raise DataError(
            f"{path} holds lm_eval's totals and no answers",
            "give the samples_*.jsonl that `lm_eval --log_samples` writes beside it",
        )
    if path.suffix in (".eval", ".json"):
        return list(_inspected(path))
    raise DataError(f"{path} is no log that is known here", "give samples_*.jsonl of lm_eval, or .eval of Inspect")


def _samples(path: Path) -> Iterator[LoggedReply]:
    """Yield the lines that `lm_eval --log_samples` wrote."""
    model = _model_beside(path)
    # Lines end at \n alone: an answer may hold other characters that `splitlines` takes for line ends.
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}:{number}"
            try:
                yield _sample(json.loads(line), place, model)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(
                    f"{place}: not an answer to an exported task: {type(error).__name__} {error}",
                    "give the samples_*.jsonl that lm_eval --log_samples wrote for a task exported from here",
                ) from error


def _sample(body: Mapping[str, Any], place: str, model: str) -> LoggedReply:
    document = body["doc"]
    requests = [list(arguments.values()) for arguments in body["arguments"].values()]
    prompt = str(requests[0][0])
    if (_sha256(json.dumps(document, indent=2, ensure_ascii=False)), _sha256(prompt)) != (
        body["doc_hash"],
        body["prompt_hash"],
    ):
        raise DataError(f"{place}: question and hash don't belong together: the log was changed", "run lm_eval again")
    asked = [{"role": "system", "content": document["system"]}] if document["system"] else []
    asked.append({"role": "user", "content": document["question"]})
    choices: tuple[str, ...] | None = None
    limit: int | None = None
    if len(requests) > 1:
        # The harness writes numbers of nested lists as text.
        likelihoods = [float(replies[0][0]) for replies in body["resps"]]
        choices = tuple(str(request[1]) for request in requests)
        text = choices[max(range(len(choices)), key=likelihoods.__getitem__)]
    else:
        limit = int(requests[0][1]["max_gen_toks"])
        if len(body["resps"][0]) != 1:
            raise DataError(f"{place}: there are {len(body['resps'][0])} answers to one question", "ask each once")
        text = str(body["resps"][0][0])
    answer = Answer(text.strip(), "stop", 0, 0, 0.0, reason="" if choices else UNTOLD, model=model)
    return LoggedReply(
        str(document["id"]), document["task"], document["version"], asked, prompt, limit, choices, answer
    )


def _model_beside(path: Path) -> str:
    """Return the model's name from the results file that the harness writes next to its samples; empty without one."""
    stamp = path.stem.rpartition("_")[2]
    results = path.with_name(f"results_{stamp}.json")
    return str(json.loads(results.read_text(encoding="utf-8")).get("model_name", "")) if results.is_file() else ""


def _inspected(path: Path) -> Iterator[LoggedReply]:
    """Yield the samples of an Inspect log."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise MachineError(
            "reading Inspect logs needs the package inspect_ai", "pip install 'gemma-ops[inspect]'"
        ) from error
    try:
        log: Any = read_eval_log(str(path.absolute()))
    except Exception as error:  # a zip, JSON or validation error, depending on what the file is
        raise DataError(
            f"{path} is no Inspect log: {error}", "give the .eval file that `inspect eval` wrote"
        ) from error
    if log.status != "success":  # of a run that broke off, cancelled samples look like failed ones
        raise DataError(f"{path} is of a run that ended with {log.status}", f"finish it: inspect eval-retry {path}")
    limit = log.plan.config.max_tokens
    for sample in log.samples or ():
        about = sample.metadata or {}
        if "task" not in about or "version" not in about or not isinstance(sample.input, list):
            raise DataError(
                f"{path}: sample {sample.id} is of no task exported from here", "export the task and run that"
            )
        if sample.epoch != 1:
            raise DataError(f"{path}: sample {sample.id} was asked more than once", "run Inspect with --epochs 1")
        asked = [{"role": message.role, "content": message.text} for message in sample.input]
        yield LoggedReply(
            str(sample.id),
            about["task"],
            about["version"],
            asked,
            None,
            limit,
            None,
            _outcome(sample, limit, log.eval.model),
        )


def _outcome(sample: Any, limit: int | None, model: str) -> Answer:
    """Return the answer of an Inspect sample; one that ended in an error has none, and says why."""
    usage = sample.output.usage
    read, written, thought, cached = (
        int(getattr(usage, name, None) or 0)
        for name in ("input_tokens", "output_tokens", "reasoning_tokens", "input_tokens_cache_read")
    )
    facts: dict[str, Any] = {
        "prompt_tokens": read, "new_tokens": max(0, written - thought), "seconds": round(sample.output.time or 0.0, 4),
        "thought_tokens": thought, "cached_tokens": cached, "model": sample.output.model or model,
    }  # fmt: skip
    if sample.error or sample.output.error or not sample.output.choices:
        why = getattr(sample.error, "message", None) or sample.output.error or "there is no answer in the log"
        return Answer("", "error", **facts, reason=str(why))
    text = sample.output.completion.strip()
    end = _ENDS.get(str(sample.output.stop_reason))
    if end is None:
        told = bool(limit and 0 < written < limit)
        return Answer(text, "stop", **facts, reason="" if told else UNTOLD)
    return Answer(text, end, **facts, reason="content filter" if end == "blocked" else "")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
