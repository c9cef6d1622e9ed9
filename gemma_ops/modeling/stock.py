"""A model and an adapter as the documentation of transformers and PEFT makes them: the baseline of `bench`, not a way
that gemma-ops trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_ops import family
from gemma_ops.modeling.load import Weights


def load_stock(folder: Path, weights: Weights, device: str) -> Any:
    """Load by `AutoModelForCausalLM.from_pretrained`, with the 4-bit configuration of TRL's QLoRA example for `nf4`.

    Its skip list is ours, so that the same linears are 4-bit in every arm.
    """
    import torch
    import transformers

    options: dict[str, Any] = {"dtype": torch.float32 if weights == "fp32" else torch.bfloat16}
    if weights == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=list(family.SKIP_4BIT),
        )
    if device != "cpu" or weights == "nf4":
        options["device_map"] = {"": device}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def lora(rank: int) -> Any:
    """Return a `peft.LoraConfig` on attention and MLP of the language model, without dropout."""
    import peft

    return peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=family.LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
