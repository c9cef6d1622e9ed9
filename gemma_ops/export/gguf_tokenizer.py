"""Gemma 4's tokenizer in a GGUF file.

llama.cpp has a tokenizer of its own for Gemma 4 (`tokenizer.ggml.model` = `gemma4`): BPE over text whose spaces are
`▁`, cut only at runs of line breaks, with byte fallback, and no prefix space. A `tokenizer.json` that works otherwise
would be read without a complaint and give other ids, so it is refused here.
"""

from __future__ import annotations

import re
from typing import Any

from gemma_ops.data import published
from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint, read_checkpoint_json
from gemma_ops.modeling.llamacpp import VISIBLE

_SCORE = -1000.0  # BPE has no scores; llama.cpp wants a number, and this is what its own converter writes


def add_tokenizer(writer: Any, source: MergedCheckpoint) -> None:
    """Write vocabulary, merges, special tokens and the chat template to a `gguf.GGUFWriter`.

    Raises ModelError when the tokenizer is not of Gemma's kind or doesn't fit the embedding.
    """
    import gguf

    body = read_checkpoint_json(source.folder / "tokenizer.json", "the tokenizer")
    size = int(source.text["vocab_size"])
    by_id = _vocabulary(body, size)
    added = {token["id"]: token for token in body["added_tokens"]}
    ids = {content: number for number, content in by_id.items()}
    tokens, types = [], []
    for number in range(size):
        content = by_id.get(number)
        if content is None:
            kind = gguf.TokenType.UNUSED
        elif content in VISIBLE:
            kind = gguf.TokenType.USER_DEFINED
        elif number in added:
            kind = gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", content):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        tokens.append((content if content is not None else f"[PAD{number}]").encode())
        types.append(kind)
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_scores([_SCORE] * size)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in body["model"]["merges"]])
    writer.add_bos_token_id(ids["<bos>"])
    writer.add_eos_token_id(ids["<eos>"])
    # The token that ends a turn: engines stop at it without being told.
    writer.add_eot_token_id(ids["<turn|>"])
    writer.add_unk_token_id(ids["<unk>"])
    writer.add_pad_token_id(ids["<pad>"])
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(published.template_of(source.folder))


def _vocabulary(body: dict[str, Any], size: int) -> dict[int, str]:
    """Return the tokens by id. Raises ModelError when llama.cpp would tokenize differently."""
    model = body["model"]
    fix = "export with the tokenizer the Gemma 4 checkpoint was published with"
    if model.get("type") != "BPE" or not model.get("byte_fallback") or model.get("ignore_merges"):
        raise ModelError("the tokenizer is not BPE with byte fallback, as Gemma 4's is", fix)
    if body.get("normalizer") != {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
        raise ModelError("the tokenizer normalizes text in another way than Gemma 4's (spaces to ▁)", fix)
    splitter = body.get("pre_tokenizer")
    # After normalization there is no space left, so Gemma's own splitter at spaces cuts nothing.
    if splitter is not None and not (splitter.get("type") == "Split" and splitter.get("pattern") == {"String": " "}):
        raise ModelError("the tokenizer cuts text before merging, which Gemma 4's does not", fix)
    by_id = {number: content for content, number in model["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in body["added_tokens"]}
    if max(by_id) >= size:
        raise ModelError(f"the tokenizer has {max(by_id) + 1} tokens, the embedding {size} rows", fix)
    for number, content in by_id.items():
        if "\n" in content and content.strip("\n"):
            raise ModelError(f"token {number} {content!r} joins a line break to other text, where llama.cpp cuts", fix)
    return by_id
