"""The job that compares graphs for LiteRT-LM with the checkpoint in transformers, position by position.

The graphs are run by the interpreter of ai-edge-litert, whose logits can be read; the runtime's own scores of texts
have outliers of a whole nat on identical tokens (LiteRT-LM 0.18.1), and are not used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gemma_ops.toolenvs.jobs.edge_export import GRAPHS, PREFILL


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write `measured.npz` with `NAME-kl<n>` and `NAME-hit<n>`, (tokens,), for each of `graphs`, {NAME: folder}, and
    each of `conversations`, lists of token ids; return the largest difference of a logit by name. A graph named in
    `prefilled` reads its first `PREFILL` tokens in one piece, as prompts are read. Models are in memory one after
    another; what transformers says waits on disk."""
    import gc

    import numpy as np

    from gemma_ops.stats.divergence import position_divergences

    conversations: list[list[int]] = request["conversations"]
    files = _reference_logits(request["model"], conversations, folder)
    gc.collect()
    found: dict[str, Any] = {}
    largest: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for name, place in request["graphs"].items():
        began = time.monotonic()
        graph = GraphRunner(Path(place), request["threads"])
        largest[name] = 0.0
        for number, (ids, file) in enumerate(zip(conversations, files, strict=True)):
            first, got = graph.read_logits(ids, chunked=name in request["prefilled"])
            wanted = np.load(file, mmap_mode="r")[first:]
            largest[name] = max(largest[name], float(np.abs(got - wanted).max()))
            found[f"{name}-kl{number}"], found[f"{name}-hit{number}"] = position_divergences(wanted, got)
        seconds[name] = time.monotonic() - began
        del graph
        gc.collect()
    np.savez(folder / "measured.npz", **found)
    for file in files:
        file.unlink()
    return {"largest": largest, "seconds": seconds}


def _reference_logits(model: str, conversations: list[list[int]], folder: Path) -> list[Path]:
    """Write what transformers says in float32, a file a conversation, (tokens, vocabulary)."""
    import numpy as np
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    files = []
    with torch.inference_mode():
        for number, ids in enumerate(conversations):
            files.append(folder / f"reference{number}.npy")
            np.save(files[-1], loaded(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy())
    return files


class GraphRunner:
    """The graphs of a folder, run token by token with their own cache."""

    def __init__(self, folder: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        opened = [Interpreter(model_path=str(folder / f"{name}.tflite"), num_threads=threads) for name in GRAPHS]
        layers, embedding, table = opened
        self._opened = opened  # runners don't keep their interpreters
        self._decode = layers.get_signature_runner("decode")
        self._prefill = layers.get_signature_runner(f"prefill_{PREFILL}")
        self._embed = embedding.get_signature_runner("decode_embedder")
        self._look_up = table.get_signature_runner("decode_per_layer_embedder")
        self._embed_many = embedding.get_signature_runner(f"prefill_embedder_{PREFILL}")
        self._look_up_many = table.get_signature_runner(f"prefill_per_layer_embedder_{PREFILL}")
        self._inputs = self._decode.get_input_details()

    def read_logits(self, ids: list[int], *, chunked: bool = False) -> tuple[int, Any]:
        """Return the logits after each token, (tokens, vocabulary) float32, and the first position they are of: with
        `chunked`, whole pieces of the beginning are read at once and have none."""
        import numpy as np

        names = [name for name in self._inputs if name.startswith("kv_cache")]
        cache = {name: np.zeros(self._inputs[name]["shape"], self._inputs[name]["dtype"]) for name in names}
        position = 0
        while chunked and len(ids) - position > PREFILL:
            piece = ids[position : position + PREFILL]
            places = list(range(position, position + PREFILL))
            found = self._prefill(
                embeddings=_only(self._embed_many(token_ids=np.array([piece], np.int32))),
                per_layer_embeddings=_only(self._look_up_many(token_ids=np.array([piece], np.int32))),
                input_pos=np.array(places, np.int32), mask=self._mask(places), **cache,
            )  # fmt: skip
            cache = {name: found[name] for name in names}
            position += PREFILL
        first, rows = position, []
        for place in range(first, len(ids)):
            token = np.array([[ids[place]]], np.int32)
            found = self._decode(
                embeddings=_only(self._embed(token_ids=token)),
                per_layer_embeddings=_only(self._look_up(token_ids=token)),
                input_pos=np.array([place], np.int32), mask=self._mask([place]), **cache,
            )  # fmt: skip
            cache = {name: found[name] for name in names}
            rows.append(found["logits"].reshape(-1).astype(np.float32))
        return first, np.stack(rows)

    def _mask(self, places: list[int]) -> Any:
        """Return the mask of queries at some places: each sees itself and what is before it."""
        import numpy as np

        found = np.full((1, 1, len(places), self._inputs["mask"]["shape"][-1]), -1e9, np.float32)
        for row, place in enumerate(places):
            found[0, 0, row, : place + 1] = 0
        return found


def _only(found: dict[str, Any]) -> Any:
    return next(iter(found.values()))
