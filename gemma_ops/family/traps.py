"""Known failures of the software stack with each Gemma 4 size, most of them silent.

Each trap names its evidence in public, so that it can be looked at again when a version moves. `doctor` explains them;
training, export and evaluation refuse or avoid them and name the code. Seen with transformers 5.23 and 5.24, TRL 1.16,
PEFT 0.21 and bitsandbytes 0.50 where no other version is given.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = ("E2B", "E4B", "12B", "26B-A4B", "31B")
EDGE = ("E2B", "E4B")


@dataclass(frozen=True)
class Trap:
    """One known failure."""

    code: str
    applies: tuple[str, ...]
    """Keys of the sizes that are concerned."""
    what: str
    evidence: str
    fix: str
    here: str
    """What gemma-ops does about it."""
    silent: bool = True
    """Whether the run goes on with a wrong result instead of stopping."""


TRAPS: tuple[Trap, ...] = (
    Trap(
        "reentrant-checkpointing", EDGE,
        "reentrant gradient checkpointing loses the gradient that sharing layers send back to the layers whose "
        "keys and values they use: the loss looks right, the adapter's gradients are wrong by tens of percent",
        "unslothai/unsloth-zoo#813 (cosine 0.14 to 0.55 against the true gradient on E2B)",
        "checkpoint with use_reentrant=False; don't combine PEFT with DeepSpeed ZeRO-3, for which TRL forces "
        "reentrant",
        here="recomputes layer by layer, never reentrant; train.trl refuses the key",
    ),
    Trap(
        "prepare-for-kbit", ALL,
        "peft.prepare_model_for_kbit_training raises every tensor that isn't 4-bit to float32 (per-layer table, "
        "embedding, experts: 26B-A4B grows from 45 to 89 GiB) and turns reentrant checkpointing on",
        "peft/utils/other.py, prepare_model_for_kbit_training",
        "don't call it: freeze the base and checkpoint non-reentrantly instead", here="never calls it", silent=False,
    ),
    Trap(
        "experts-stay-bf16", ("26B-A4B",),
        "load_in_4bit converts nn.Linear only; the experts are 3-D parameters and stay bf16: 42.5 GiB of a model "
        "called 4-bit",
        "bitsandbytes#1849, unslothai/unsloth#5432 (46 GB reserved for a 4-bit 26B-A4B)",
        "load with gemma_ops.modeling (weights: nf4), which quantizes the experts too, from the file, and counts: "
        "13.2 GiB",
        here="quantizes the experts while they stream in, and refuses a model whose bytes are not as planned",
    ),
    Trap(
        "4bit-router", ("26B-A4B",),
        "the router's projection is an nn.Linear and is quantized unless skipped; its rounding changes which "
        "experts answer",
        "bitsandbytes converts every nn.Linear not named in llm_int8_skip_modules",
        "keep the skip list of gemma_ops.family.SKIP_4BIT",
        here="skips it, and compares every 4-bit module with what should be one",
    ),
    Trap(
        "4bit-skip-list", ALL,
        "a skip list of plain names (`vision_tower`) matches nothing, and giving one at all drops the default "
        "that protects lm_head: towers and the tied head are quantized",
        "transformers/quantizers/quantizers_utils.py, should_convert_module (prefix, suffix or full regular "
        "expression)",
        "keep the skip list of gemma_ops.family.SKIP_4BIT",
        here="skips by full expressions, and compares every 4-bit module with what should be one",
    ),
    Trap(
        "loss-under-accumulation", ALL,
        "the class says accepts_loss_kwargs = False, so the Trainer averages the means of micro-batches: short "
        "rows weigh more the smaller the micro-batch",
        "modeling_gemma4.py and modeling_gemma4_unified.py, accepts_loss_kwargs",
        "set model.accepts_loss_kwargs = True before building the trainer",
        here="divides by the scored tokens of the whole optimizer step, over all passes and processes",
    ),
    Trap(
        "fp32-default", ALL,
        "TRL given a model name loads it in float32: twice the memory, and under autocast a bf16 copy of every "
        "weight on top",
        "trl/trainer/utils.py, create_model_from_path",
        "load the model yourself in bfloat16 and pass the object", here="loads the model itself, in train.weights",
        silent=False,
    ),
    Trap(
        "fp16", ALL,
        "float16 overflows in the MLP (and did in the vision pooler): NaN loss or NaN logits on GPUs without "
        "bfloat16, such as the T4",
        "vllm-project/vllm#40290, huggingface/transformers#46277",
        "bfloat16 only; on Turing GPUs it is emulated and slow",
        here="offers bf16 and fp32 only; train.trl refuses the key", silent=False,
    ),
    Trap(
        "sdpa-string", EDGE,
        "attn_implementation='sdpa' (or 'flex_attention') as a string reaches the audio tower, which has eager "
        "attention only: loading raises",
        "modeling_gemma4.py, Gemma4AudioModel._supports_sdpa = False",
        "leave it unset, or pass {'text_config': 'sdpa'}", here="sets attention on the text part alone", silent=False,
    ),
    Trap(
        "flash-attention", ALL,
        "global layers have heads of 512; FlashAttention 2 and 3 stop at 256 and fail in the first step",
        "Dao-AILab/flash-attention#2427", "use SDPA", here="computes global layers with SDPA, document by document",
        silent=False,
    ),
    Trap(
        "text-class-on-full-checkpoint", ALL,
        "Gemma4ForCausalLM.from_pretrained on a checkpoint with towers matches no key and returns random weights "
        "with a warning; the loss starts at ln(262144) = 12.5",
        "key prefixes model.language_model.* against model.*",
        "keep the class with towers and set vision_config and audio_config to None; fail on any missing key",
        here="loads the class the checkpoint names, without towers, and refuses any missing key",
    ),
    Trap(
        "packing-with-mask", ALL,
        "packed rows with an attention_mask of ones attend to each other: the rows are told apart by position_ids "
        "only when no mask is given",
        "transformers/masking_utils.py; axolotl#3796",
        "pass position_ids that restart in each row and no attention_mask",
        here="sends positions and bounds, never a mask; a test compares each document with itself alone",
    ),
    Trap(
        "lora-everywhere", ALL,
        "target_modules='all-linear' puts adapters into towers, router and per-layer projections; a list of the "
        "seven suffixes stops at Gemma4ClippableLinear in the towers",
        "huggingface/peft#3129", "take the regular expression gemma_ops.family.LORA_TARGETS",
        here="takes one anchored expression and refuses towers, routers and per-layer projections in it", silent=False,
    ),
    Trap(
        "lost-head-dims", ALL,
        "transformers saves per_layer_config and drops global_head_dim and num_global_key_value_heads; older "
        "vLLM, llama.cpp and Ollama then misread the checkpoint",
        "huggingface/transformers#47384, vllm-project/vllm#51744", "write both spellings into config.json",
        here="writes both spellings",
    ),
    Trap(
        "merge-into-4bit", ALL,
        "merging an adapter into, or dequantizing, a 4-bit base rounds the update away (and on AVX-512 CPUs "
        "returns garbage after a forward pass)",
        "bitsandbytes 0.50 CPU weight packing", "merge into the bf16 base",
        here="merges into the bf16 base, and refuses any other",
    ),
    Trap(
        "empty-thought", ("12B", "26B-A4B", "31B"),
        "with thinking off the generation prompt ends in an empty thought that the same conversation no longer shows "
        "in its later turns: trained in one piece, the model learns in another context than it is asked in",
        "chat template of google/gemma-4-31B-it; NeMo AutoModel gemma4_prefix_collate_fn",
        "train each answer after exactly the prompt that asks for it",
        here="renders each answer's prompt with the checkpoint's own template, and makes one example an answer where "
        "no one example holds them all",
    ),
    Trap(
        "packed-images", ("26B-A4B", "31B"),
        "in packed rows the mask counts positions from each row's start but looks up by them which image a token "
        "of the whole pass belongs to: rows after the first attend across the first one's images",
        "transformers/masking_utils.py, packed_sequence_compatibility_function around blockwise_overlay",
        "pad rows with images on these sizes",
        here="numbers the images of each document by themselves, and pads where train.kernels.attention is sdpa",
    ),
    Trap(
        "no-video-token-types", ("12B", "26B-A4B", "31B"),
        "images without mm_token_type_ids silently lose their bidirectional attention",
        "modeling_gemma4.py, use_bidirectional_attention = 'vision'", "pass the processor's mm_token_type_ids along",
        here="always passes them along",
    ),
    Trap(
        "mean-of-means", ALL,
        "validation averages the means of batches, so that a short batch weighs as much as a long one",
        "transformers/trainer.py, evaluation_loop", "weigh by scored tokens",
        here="reports the mean over scored tokens, whatever the passes",
    ),
    Trap(
        "neftune-under-packing", ALL,
        "NEFTune scales its noise by the length of what the model is given: packed rows are disturbed less the better "
        "they are packed",
        "transformers/integrations/neftune.py", "scale by the length of each document",
        here="scales by the length of each document",
    ),
    Trap(
        "autocast-copies", ALL,
        "autocast keeps a bf16 copy of every frozen float32 weight for the backward pass, and PEFT casts the input of "
        "each adapter to float32 and back: up to 54 GiB of copies on 31B",
        "torch/amp; peft/tuners/lora/layer.py, forward", "hold the base in bf16 and compute without autocast",
        here="computes adapters in the base's type, their parameters kept in float32", silent=False,
    ),
    Trap(
        "two-trainings-one-folder", ALL,
        "two processes started on a machine without a GPU, and without use_cpu, train independently and write into one "
        "folder",
        "accelerate/state.py, where MULTI_CPU is chosen", "set use_cpu, and check the number of processes",
        here="refuses when the processes don't know of each other",
    ),
    Trap(
        "fsdp-on-cpu", ALL,
        "FSDP asked for on processors is ignored: each process holds the whole model",
        "accelerate 1.15 state.py: only MULTI_GPU and its like become FSDP", "check the distributed type",
        here="refuses when FSDP was asked for and is not what runs",
    ),
    Trap(
        "sharded-state", ALL,
        "with SHARDED_STATE_DICT the final save writes nothing, without an error",
        "transformers/trainer.py, save_model", "gather the state before the final save",
        here="gathers, and checks that every tensor is there and whole",
    ),
    Trap(
        "uint8-storage", ALL,
        "4-bit weights stored as uint8 are left out of FSDP's sharding: every process holds all of them",
        "huggingface/accelerate#3983 and #3987", "set bnb_4bit_quant_storage to the model's type",
        here="stores them in the model's type whenever FSDP runs",
    ),
    Trap(
        "duplicate-head", ALL,
        "a full fine-tune under FSDP saves the tied head a second time: 0.8 to 2.8 GB of it",
        "accelerate, FULL_STATE_DICT of tied parameters", "drop lm_head.weight where it equals the embedding",
        here="drops it",
    ),
    Trap(
        "image-loss", ALL,
        "image SFT from messages trains on placeholders: 120 of 184 scored tokens were <|image|>",
        "trl/trainer/sft_trainer.py, DataCollatorForVisionLanguageModeling", "mask them",
        here="never scores a placeholder",
    ),
    Trap(
        "expert-adapters-on-nf4", ("26B-A4B",),
        "PEFT puts no adapter on experts that are 4-bit already, with a warning only; put on first, their "
        "gradients are None",
        "peft target_parameters over bitsandbytes parametrizations", "leave experts frozen, or hold the base in bf16",
        here="adapts them with code of its own, or refuses",
    ),
)  # fmt: skip


def traps(key: str) -> tuple[Trap, ...]:
    """Return the traps that concern one size."""
    return tuple(trap for trap in TRAPS if key in trap.applies)
