"""Bytes that a forward pass keeps for the backward pass, per token and layer and term by term, and its workspaces.

Read off the operations of `modeling_gemma4.py` (transformers 5.23) and of `gemma_ops.kernels`; each kernel that
is switched off has the terms of what runs instead (eager norms, PEFT's linears under autocast, SDPA with a mask, TRL's
head). A simulation of the real graph reproduces the sums to 1 % (tests/planning/test_training_memory.py).
"""

from __future__ import annotations

from gemma_ops.family import Layer, Shape
from gemma_ops.planning.training_step import PassShape

_TRL_TILE = (4096, 32_768)
"""Tokens and words of TRL's fused head: it never holds more logits than this (trl/kernels/chunked_logprob.py, TRL
1.16)."""
_TORCH_TILES = 8
"""Float32 tiles of TRL's fused head that are alive at once where Triton doesn't run and torch folds the tile (CPU)."""
_OWN_TILE = {"cuda": (2048, 8192), "cpu": (512, 512)}
"""Tile of our fused head (`head_tiles`), with three buffers of 4, 4 and 2 bytes."""
_FOLDED_TILE = (4096, 16_384)
"""Tile of our fused head where Triton folds it: 2 bytes a logit, and for a token's gradient its float32 sum and the
label's row."""


def layer_bytes(shape: Shape, one: Layer, step: PassShape) -> float:
    """Return the bytes that one layer keeps per token without gradient checkpointing.

    Norms their input and a number a row; attention q, k, v and output and the log-sum-exp; the MLP gate and up; each
    adapter its input, shared where one tensor feeds several and the kernel knows it; a mixture of experts the same per
    chosen expert.
    """
    own, width = not one.shares_kv, step.width
    h, q, kv = shape.hidden, one.query_width, one.kv_width
    norms = 4 + bool(shape.per_layer_dim) + (2 if step.kernels.norms == "fused" else 4) * bool(shape.experts)
    total = _norms(norms * h + q + 2 * kv * own, norms + one.heads + 2 * one.kv_heads * own, step)
    repeated = 1 < one.kv_heads < one.heads and step.kernels.attention == "sdpa"
    total += width * (2 * q + (2 * q if repeated else 2 * kv * own)) + 4 * one.heads
    total += mask_bytes(one, step) + _adapters(h, one, step) + mlp_bytes(one, step)
    total += 2 * width * shape.per_layer_dim
    if shape.experts:
        chosen = shape.experts_per_token
        total += _experts(shape, step) + 20 * chosen + 8 * shape.experts
    return total


def _experts(shape: Shape, step: PassShape) -> float:
    """Return the bytes that a mixture of experts keeps: fused, the outputs of gate and up; else the inputs and all
    between."""
    inside = 2 * shape.expert_ffn if step.kernels.lora == "fused" else shape.hidden + 3 * shape.expert_ffn
    return step.width * shape.experts_per_token * inside


def _norms(numbers: int, rows: int, step: PassShape) -> float:
    """Return the bytes that norms over so many numbers in so many rows keep: fused, the input and one float32 a row;
    eager, the input in float32 and two."""
    if step.kernels.norms == "fused":
        return step.width * numbers + 4.0 * rows
    return 4.0 * numbers + 8 * rows


def mlp_bytes(one: Layer, step: PassShape) -> float:
    """Return the bytes that an MLP keeps inside: gate and up; unfused also the activation between."""
    return step.width * one.ffn * (2.0 if step.kernels.lora == "fused" else 3.0)


def mask_bytes(one: Layer, step: PassShape) -> float:
    """Return the bytes per token that grow with the length of the row: a square mask in the activations' type, and the
    scores where no kernel avoids them."""
    scores = 0 if step.fused_attention else 4 * one.heads
    if step.kernels.attention == "documents":
        return float(scores * min(step.length, one.window or step.length))
    return float((step.width + scores) * step.tokens)


def _adapters(h: int, one: Layer, step: PassShape) -> float:
    """Return the bytes per token that the adapters of one layer keep."""
    here = step.by_layer.get(one.index, [])
    middles = step.width * step.rank * len(here)
    names = {linear.name.rsplit(".", 1)[1] for linear in here}
    if step.width == 2 and step.kernels.lora == "peft":
        # PEFT casts the input to the adapter's float32 and autocast back: a copy of its own per module.
        return middles + sum(2 * linear.inputs for linear in here)
    # Modules fed by one tensor share it, and attention keeps its output anyway.
    shared = bool(names & {"q_proj", "k_proj", "v_proj"}) + bool(names & {"gate_proj", "up_proj"})
    down = one.ffn if step.kernels.lora == "peft" and "down_proj" in names else 0
    return middles + step.width * (h * shared + down)


def end_bytes(shape: Shape, step: PassShape) -> float:
    """Return the bytes per token outside of the layers: the last norm, and the scored hidden states' gradients."""
    last = _norms(shape.hidden, 1, step)
    return last + (step.width * shape.hidden * step.scored if step.kernels.head == "fused" else 0.0)


def copy_bytes(step: PassShape) -> float:
    """Return the bytes of the bf16 copies that autocast keeps of each float32 LoRA matrix."""
    return 2.0 * step.adapter_parameters if step.width == 2 else 0.0


def head_bytes(shape: Shape, step: PassShape) -> float:
    """Return the workspace of the head: tiles of logits, the scored hidden states, and their gradient."""
    scored = step.tokens * step.scored
    if step.kernels.head == "fused":
        tokens, words = _OWN_TILE["cuda" if step.cuda else "cpu"]
        torch_s = 10.0 * min(scored, tokens) * min(shape.vocab, words) + 6.0 * min(scored, tokens) * shape.hidden
        if not step.cuda or step.width == 4:
            return torch_s
        rows, columns = min(scored, _FOLDED_TILE[0]), min(shape.vocab, _FOLDED_TILE[1])
        folded = 2.0 * rows * columns + 10.0 * rows * shape.hidden
        return max(folded, torch_s) if step.full else folded  # a head that learns is left to torch
    rows, columns = min(scored, _TRL_TILE[0]), min(shape.vocab, _TRL_TILE[1])
    tile = float(step.width * rows * _TRL_TILE[1])
    if not step.cuda:
        tile += 4.0 * _TORCH_TILES * rows * columns
    return tile + 8.0 * scored * shape.hidden


def backward_bytes(shape: Shape, step: PassShape) -> float:
    """Return the bytes of gradients alive at once inside one layer (about five of the widest), and of one dequantized
    weight for nf4."""
    widest = max(one.ffn for one in shape.layers)
    per_token = step.width * (5.0 * widest + 6 * shape.experts_per_token * shape.hidden)
    if not step.fused_attention:
        per_token += 8 * max(one.heads for one in shape.layers) * step.length
    dequantized = 0.0
    if step.weights == "nf4":
        stack = 2 * shape.experts * shape.hidden * shape.expert_ffn
        dequantized = 2.0 * max(stack, *(linear.parameters for linear in shape.linears()))
    return per_token * step.tokens + dequantized
