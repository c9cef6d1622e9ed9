"""nano's dimensions and its tokenizer.

Every mechanism that sets Gemma 4 apart is here in small: per-layer embeddings, the last three layers sharing the keys
and values of earlier ones (and twice as wide inside), a 64-token sliding window between full-attention layers with
heads twice as wide, logits capped at 30, the head tied to the embedding. Rows of every matrix are a multiple of 32
long, so that the GGUF block formats apply. Special tokens have the ids they have in Gemma's own vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VOCABULARY = 2048
"""Tokens, the 256 byte tokens and 110 reserved ids included (Gemma 4: 262,144)."""

SPECIAL = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>",
    46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>",
    51: "<tool_response|>",
    52: '<|"|>', 98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>",
}  # fmt: skip
STOPS = (1, 106, 50)
"""Token ids that end a reply: `<eos>`, `<turn|>`, and `<|tool_response>`, which hands over to a tool."""


def text_config() -> dict[str, Any]:
    """Return keyword arguments of `Gemma4TextConfig`."""
    return {
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 32,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "max_position_embeddings": 4096,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }


def build_nano(seed: int = 0) -> Any:
    """Build a `Gemma4ForConditionalGeneration` of nano's shape with random float32 weights."""
    import torch
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4TextConfig

    torch.manual_seed(seed)
    config = Gemma4Config(
        text_config=Gemma4TextConfig(**text_config()), vision_config=None, audio_config=None, tie_word_embeddings=True
    )
    model = Gemma4ForConditionalGeneration(config)
    # Three starting values that make copying learnable in minutes. Gemma 4 doesn't divide attention scores by the root
    # of the head size, its query norm learns the scale: starting at 1, every head would be saturated. Each branch ends
    # in a norm that starts at 1, whatever the branch knows, and would drown an embedding five times smaller.
    text = model.model.language_model
    torch.nn.init.normal_(text.embed_tokens.weight, std=0.08)
    for layer in text.layers:
        layer.self_attn.q_norm.weight.data.fill_(layer.self_attn.head_dim**-0.5)
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm, layer.post_per_layer_input_norm):
            norm.weight.data.fill_(0.2)
    return model


def train_tokenizer(lines: Iterable[str]) -> Any:
    """Train a byte-pair `tokenizers.Tokenizer` with Gemma's conventions: spaces become `▁`, unknown characters fall
    back to bytes, special tokens keep Gemma's ids. Unlike Gemma's, digits may stand in pairs: single ones repeat so
    often in a prompt that a model of this size can't tell which occurrence to copy from.

    Words are split apart only while merges are learned; afterwards no merge can cross a word, so the splitter is taken
    off again and the saved tokenizer is plain BPE, as Gemma's is and as llama.cpp reads it.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    reserved = [SPECIAL.get(index, f"<unused{index}>") for index in range(110)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"▁?[A-Za-z]+|\d{1,3}|\n|[^A-Za-z\d\n]+?(?=▁[A-Za-z]|[A-Za-z\d\n]|$)"), "isolated"
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*reserved, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[chr(code) for code in range(33, 127)] + ["▁", "\n"],
        limit_alphabet=256,
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    # Byte tokens are ordinary vocabulary; only what the chat format uses is special.
    body = json.loads(tokenizer.to_str())
    body["added_tokens"] = [token for token in body["added_tokens"] if token["id"] in SPECIAL]
    plain: Any = Tokenizer.from_str(json.dumps(body))
    plain.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL.values()])
    return plain


def save_nano(model: Any, folder: Path, tokenizer: Any | None = None) -> Path:
    """Write a complete bf16 checkpoint: weights, configuration, tokenizer, chat template, generation settings.

    Without `tokenizer` the shipped one is used.
    """
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from gemma_ops.data.chat import inference_template
    from gemma_ops.nano import WEIGHTS

    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=list(STOPS), pad_token_id=0, do_sample=False
    )
    model.save_pretrained(folder)
    if tokenizer is None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
        extra_special_tokens=[text for index, text in SPECIAL.items() if index > 4],
        padding_side="left", model_max_length=4096, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    wrapped.chat_template = inference_template()
    wrapped.save_pretrained(folder)
    return folder
