"""Forward passes of a decoder layer's modules on our kernels, bound to the instances of a loaded model by `install`.

They follow transformers' own line by line (5.23 and 5.24, `modeling_gemma4` and `modeling_gemma4_unified`); only what
computes a step differs. Arguments, caches, shared keys and hooks are theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gemma_ops.kernels import lora_linears, ops_autograd
from gemma_ops.kernels.attention import CACHES
from gemma_ops.kernels.mixture import mixture
from gemma_ops.kernels.mlp import mlp
from gemma_ops.kernels.ops_runner import OpRunner

ACTIVATION = "gelu_pytorch_tanh"
"""The only activation that is fused; Gemma 4 has no other."""


@dataclass(frozen=True)
class Using:
    """Parts of a layer that run on kernels."""

    lora: bool
    norms: bool
    run: OpRunner
    recompute_mlp: bool
    gelu: bool
    """Whether the model's activation is the fused one."""
    draws: bool
    """Whether layers draw random numbers, which a recomputed pass must repeat."""

    def linears(self, x: Tensor, modules: Sequence[Any]) -> Sequence[Tensor]:
        """Return the output of each linear for `x`."""
        return lora_linears.linears(x, modules) if self.lora else [module(x) for module in modules]


def norm_forward(using: Using) -> Callable[..., Any]:
    """Return the forward pass of `Gemma4RMSNorm`."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return ops_autograd.norm(hidden_states, _weight(self), self.eps, using.run)

    return forward


def mlp_forward(using: Using) -> Callable[..., Any]:
    """Return the forward pass of `Gemma4TextMLP`."""

    def parts(self: Any, x: Tensor) -> Tensor:
        gate, up = using.linears(x, (self.gate_proj, self.up_proj))
        hidden = ops_autograd.geglu(gate, up, using.run) if using.norms else self.act_fn(gate) * up
        return using.linears(hidden, (self.down_proj,))[0]

    def forward(self: Any, x: Tensor) -> Tensor:
        if using.lora and using.gelu:
            whole = mlp(x, self.gate_proj, self.up_proj, self.down_proj, recompute=using.recompute_mlp, run=using.run)
            if whole is not None:
                return whole
        if using.recompute_mlp and torch.is_grad_enabled():
            again: Tensor = checkpoint(parts, self, x, use_reentrant=False, preserve_rng_state=using.draws)
            return again
        return parts(self, x)

    return forward


def attention_forward(using: Using) -> Callable[..., Any]:
    """Return the forward pass of `Gemma4TextAttention`."""

    def rotate(states: Tensor, norm: Any, cos: Tensor, sin: Tensor) -> Tensor:
        if using.norms:
            return ops_autograd.rotated(states, _weight(norm), cos, sin, norm.eps, using.run).transpose(1, 2)
        states = norm(states)
        first, second = states.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        return (states * cos.unsqueeze(2) + turned * sin.unsqueeze(2)).transpose(1, 2)

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: Any,
        attention_mask: Any,
        shared_kv_states: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        found = [kwargs.pop(name, None) for name in CACHES]
        cache = next((one for one in found if one is not None), None)
        rows = hidden_states.shape[:-1]
        heads = (*rows, -1, self.head_dim)
        modules = [self.q_proj] if self.is_kv_shared_layer else [self.q_proj, self.k_proj, self.v_proj]
        states = using.linears(hidden_states, [module for module in modules if module is not None])
        query = rotate(states[0].view(heads), self.q_norm, *position_embeddings)
        if self.is_kv_shared_layer:
            key, value = shared_kv_states[self.layer_type]
        else:
            key = states[1].view(heads)
            value = self.v_norm(states[2].view(heads) if len(states) > 2 else key).transpose(1, 2)
            key = rotate(key, self.k_norm, *position_embeddings)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)
        if self.store_full_length_kv:
            shared_kv_states[self.layer_type] = key, value
        eager = sys.modules[type(self).__module__].eager_attention_forward
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        out, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        out = out.reshape(*rows, -1).contiguous()
        return using.linears(out, (self.o_proj,))[0], weights

    return forward


def layer_forward(using: Using) -> Callable[..., Any]:
    """Return the forward pass of `Gemma4TextDecoderLayer`, in which norms and residual additions are one step."""

    def join(stream: Tensor, states: Tensor, norm: Any, scale: Tensor | None = None) -> Tensor:
        return ops_autograd.add_norm(stream, states, _weight(norm), norm.eps, scale, using.run)

    def once(
        self: Any,
        hidden_states: Tensor,
        per_layer_input: Tensor | None = None,
        shared_kv_states: Any = None,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        stream = hidden_states
        states, _ = self.self_attn(
            hidden_states=self.input_layernorm(stream),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            shared_kv_states=shared_kv_states,
            position_ids=position_ids,
            **kwargs,
        )
        stream = join(stream, states, self.post_attention_layernorm)
        states = self.mlp(self.pre_feedforward_layernorm(stream))
        if getattr(self, "enable_moe_block", False):
            states = join(
                self.post_feedforward_layernorm_1(states),
                _mixture(self, stream, using),
                self.post_feedforward_layernorm_2,
            )
        ple = getattr(self, "hidden_size_per_layer_input", 0)
        stream = join(stream, states, self.post_feedforward_layernorm, None if ple else self.layer_scalar)
        if not ple:
            return stream
        assert per_layer_input is not None
        gated = ops_autograd.geglu(self.per_layer_input_gate(stream), per_layer_input, using.run)
        return join(stream, self.per_layer_projection(gated), self.post_per_layer_input_norm, self.layer_scalar)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        # transformers checkpoints inside of the class's forward, which this one stands before.
        if not (self.gradient_checkpointing and self.training):
            return once(self, *args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in CACHES}
        found: Tensor = self._gradient_checkpointing_func(partial(once, self, **kwargs), *args)
        return found

    return forward


def experts_forward(original: Callable[..., Any], using: Using) -> Callable[..., Any]:
    """Return the forward pass of a mixture's experts; with `recompute_mlp` they are recomputed in the backward pass."""

    def forward(self: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Any:
        if using.lora and using.gelu:
            found = mixture(self, hidden, index, weights, using.run, recompute=using.recompute_mlp)
            if found is not None:
                return found
        if not (using.recompute_mlp and torch.is_grad_enabled()):
            return original(self, hidden, index, weights)
        return checkpoint(original, self, hidden, index, weights, use_reentrant=False, preserve_rng_state=False)

    return forward


def _mixture(self: Any, stream: Tensor, using: Using) -> Tensor:
    """Return the chosen experts' output for the residual stream, before their norm."""
    flat = stream.reshape(-1, stream.shape[-1])
    _, weights, index = self.router(flat)
    found: Tensor = self.experts(self.pre_feedforward_layernorm_2(flat), index, weights)
    return found.reshape(stream.shape)


def _weight(norm: Any) -> Tensor | None:
    return norm.weight if norm.with_scale else None
