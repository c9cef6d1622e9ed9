"""Small twins of the five sizes: the same mechanisms, rows that are whole blocks of every GGML type, and weights that
mean something, because they were trained for some minutes on nano's lessons and on support tickets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemma_ops import family
from gemma_ops.nano import lessons, nano_shape, tickets
from gemma_ops.nano.pretrain import Row, lesson_batches, train_on_lessons

STEPS = 300
_ROWS = 16
_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_HELD_OUT = 120


def twin_text_config(size: str) -> dict[str, Any]:
    """Return the text configuration of a size's twin: 256 wide, six layers, nano's vocabulary."""
    whole = family.CONFIGS[size]["text_config"]
    found = {
        **whole,
        "vocab_size": nano_shape.VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": len(_LAYERS),
        "layer_types": list(_LAYERS),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "global_head_dim": 128,
        "sliding_window": 64,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if whole.get("hidden_size_per_layer_input"):
        found |= {"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": nano_shape.VOCABULARY}
    if whole.get("num_kv_shared_layers"):
        found["num_kv_shared_layers"] = 3
    if whole.get("num_global_key_value_heads"):
        found["num_global_key_value_heads"] = 1
    if whole.get("enable_moe_block"):
        found |= {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 256}
    return found


def make_twin(size: str, folder: Path, tell: Callable[[str], None], steps: int = STEPS) -> Path:
    """Train the twin of a size and save its checkpoint in `folder`, unless it lies there; the seed is fixed."""
    if (folder / "config.json").exists():
        return folder
    import torch

    torch.manual_seed(0)
    model = _build(size)
    tokenizer = nano_tokenizer()
    train_on_lessons(model, _mixed_batches(tokenizer), steps, lambda text: tell(f"{size} {text}"))
    return nano_shape.save_nano(model, folder)


def write_rows(folder: Path) -> tuple[Path, Path]:
    """Write the rows of a comparison in `folder`: training and held-out tickets as a prepared folder, and general
    lessons; return the folders of both."""
    task, general = folder / "task", folder / "general"
    rng = random.Random("general")
    lesson_rows = [lessons.lesson(rng) for _ in range(_HELD_OUT)]
    held_out = [(row["prompt"], row["reference"]) for row in tickets.test_rows(_HELD_OUT, 11)]
    for path, rows in (
        (task / "train.jsonl", [_said(row) for row in tickets.training_rows(1000, 1)]),
        (task / "valid.jsonl", held_out),
        (general / "valid.jsonl", [(one.question, one.answer) for one in lesson_rows]),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(_row(number, *pair)) + "\n" for number, pair in enumerate(rows)), "utf-8")
    return task, general


def nano_tokenizer() -> Any:
    """Load nano's shipped tokenizer."""
    from gemma_ops.modeling.load import load_tokenizer
    from gemma_ops.nano import WEIGHTS

    return load_tokenizer(WEIGHTS)


def _said(row: dict[str, Any]) -> tuple[str, str]:
    question, answer = row["messages"]
    return question["content"], answer["content"]


def _row(number: int, question: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"row-{number}", "privacy": "any", "messages": turns}


def _build(size: str) -> Any:
    import torch
    import transformers

    text = twin_text_config(size)
    if family.CONFIGS[size]["model_type"] == "gemma4_unified":
        config = transformers.Gemma4UnifiedConfig(text_config=text, tie_word_embeddings=True)
        config.vision_config = None
        model = transformers.Gemma4UnifiedForConditionalGeneration(config)
    else:
        config = transformers.Gemma4Config(text_config=text, vision_config=None, audio_config=None)
        model = transformers.Gemma4ForConditionalGeneration(config)
    # As nano begins (`nano.nano_shape`): attention that isn't saturated, branches that add a little.
    language = model.model.language_model
    torch.nn.init.normal_(language.embed_tokens.weight, std=0.08)
    for layer in language.layers:
        layer.self_attn.q_norm.weight.data.fill_(layer.self_attn.head_dim**-0.5)
        for name, value in layer.named_parameters():
            if name.startswith("post_") and name.endswith("norm.weight"):
                value.data.fill_(0.2)
    return model


def _mixed_batches(tokenizer: Any) -> Iterator[list[Row]]:
    """Yield batches of lessons and of training tickets by turns."""
    rows = [_said(row) for row in tickets.training_rows(3000, 1)]
    ids = []
    for question, answer in rows:
        asked = tokenizer.encode(f"<bos><|turn>user\n{question}<turn|>\n<|turn>model\n", add_special_tokens=False).ids
        ids.append((asked + tokenizer.encode(f"{answer}<turn|>", add_special_tokens=False).ids, len(asked)))
    starts = list(range(0, len(ids) + 1, _ROWS))
    general = lesson_batches(tokenizer, 1, _ROWS)
    while True:
        for first, last in pairwise(starts):
            yield next(general)
            yield ids[first:last]
