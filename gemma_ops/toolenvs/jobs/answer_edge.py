"""The job that answers prompts greedily in LiteRT-LM, as it runs on a phone, on this machine's CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def open_engine(file: str, room: int, threads: int) -> Any:
    """Open a file with room for so many tokens, in float32 on the CPU; nothing is kept beside the file."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    backend = litert_lm.Backend.CPU(thread_count=threads) if threads else litert_lm.Backend.CPU()
    return litert_lm.Engine(
        file, backend=backend, max_num_tokens=room, cache_dir=":nocache",
        activation_data_type=litert_lm.ActivationDataType.FLOAT32,
    )  # fmt: skip


def greedy() -> Any:
    """Return the sampler that takes the likeliest token."""
    import litert_lm

    return litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=0.0, seed=1)


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return an answer for each of `texts`, prompts as the checkpoint's tokenizer reads them back from `prompts` (token
    ids): its `text`, whether it stopped before `limit` tokens, and seconds. A prompt that the runtime would read as
    other tokens ends in an `error`."""
    longest = max(map(len, request["prompts"]))
    answers = []
    with open_engine(request["model"], longest + request["limit"] + 8, request["threads"]) as engine:
        for ids, text in zip(request["prompts"], request["texts"], strict=True):
            began = time.monotonic()
            body = text.removeprefix("<bos>")
            read = engine.tokenize(body)
            if read != ids[len(ids) - len(read) :] or len(ids) - len(read) > 1:
                why = "LiteRT-LM would read other tokens than the checkpoint's tokenizer"
                answers.append({"error": why, "seconds": time.monotonic() - began})
                continue
            with engine.create_session(
                apply_prompt_template=False, sampler_config=greedy(), max_output_tokens=request["limit"]
            ) as session:
                session.run_prefill([body])
                said = session.run_decode().texts[0]
            stopped = len(engine.tokenize(said)) < request["limit"]
            answers.append({"text": said, "stopped": stopped, "seconds": time.monotonic() - began})
    return {"answers": answers}
