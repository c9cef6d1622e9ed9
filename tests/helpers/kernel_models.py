"""What the tests of `gemma_ops.kernels` share: tiny models in memory, a step on one, and comparisons."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer

from gemma_ops.config import LoraConfig
from gemma_ops.config.training_sections import KernelsConfig
from gemma_ops.modeling import adapters
from tests.helpers import tiny_models

LENGTHS = [5, 40, 17, 33, 1, 24]
"""Documents shorter and longer than the window of 16, and one of a single token."""
EXACT = {"moe": 3e-4}
"""Relative difference that float32 rounding makes where the router's steep softmax enlarges it; 1e-5 elsewhere."""
STOCK = KernelsConfig(attention="sdpa", head="trl", lora="peft", norms="eager", compile="off")


@cache
def vocabulary() -> dict[str, int]:
    return Tokenizer.from_file(str(tiny_models.NANO / "tokenizer.json")).get_vocab()


def build(kind: Any, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    return tiny_models.build(kind, vocabulary(), **overrides).to(dtype)


def tuned(kind: Any, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    """With an adapter that is not zero, in training mode."""
    model = adapters.attach(build(kind, dtype), LoraConfig(**({"rank": 4} | lora)), 0).train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def documents(lengths: list[int] = LENGTHS, seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randint(300, len(vocabulary()), (1, length)) for length in lengths]


def packed(docs: list[torch.Tensor]) -> dict[str, Any]:
    """The arguments of a forward pass of documents in one row."""
    cuts = [0]
    for doc in docs:
        cuts.append(cuts[-1] + doc.shape[1])
    positions = torch.cat([torch.arange(doc.shape[1]) for doc in docs])[None]
    return {"input_ids": torch.cat(docs, 1), "position_ids": positions, "cu_seq_lens_q": cuts, "use_cache": False}


def step(model: Any, **batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradients of a loss that weighs all of them differently."""
    model.zero_grad()
    logits = model(**batch).logits
    wave = torch.sin(torch.arange(logits.numel()).float()).view_as(logits)
    (logits.float() * wave).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def joined(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten().double() for name in sorted(gradients)])


def apart(ours: Any, theirs: Any) -> float:
    """The relative difference of all gradients together; names must be the same."""
    assert set(ours) == set(theirs)
    assert ours
    a, b = joined(ours), joined(theirs)
    return float((a - b).norm() / b.norm())


def cosine(ours: Any, theirs: Any) -> float:
    return float(torch.cosine_similarity(joined(ours), joined(theirs), dim=0))


def exact(kind: str) -> float:
    return EXACT.get(kind, 1e-5)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def kept_bytes(function: Any, model: Any) -> int:
    """Bytes autograd keeps alive for the backward pass of what `function` computes: distinct memory, `model`'s
    aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(found.values())
