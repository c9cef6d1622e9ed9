"""Installation of the kernels on a loaded model, and their removal.

Only instances are touched: a frozen teacher, or the same base loaded again, keeps transformers' own operations. Names
of parameters do not change, so checkpoints and adapters are the same with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gemma_ops.config.training_sections import KernelsConfig
from gemma_ops.kernels import attention, layers
from gemma_ops.kernels.graphs_layers import Graphs
from gemma_ops.kernels.layers import Using
from gemma_ops.kernels.ops_runner import OpRunner
from gemma_ops.modeling import experts
from gemma_ops.modeling.triton_launch import triton_here

Recompute = Literal["none", "mlp", "all"] | int
_MARK = "_gemma_ops_kernels"


class Installed:
    """Record of what `install` changed on a model: enough to undo it."""

    def __init__(self) -> None:
        self.methods: list[tuple[Any, str]] = []
        self.attributes: list[tuple[Any, str, Any]] = []
        self.hooks: list[Any] = []
        self.attention: str | None = None

    def method(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        """Shadow `module.name` with `function` bound to the instance."""
        setattr(module, name, MethodType(function, module))
        self.methods.append((module, name))

    def attribute(self, module: Any, name: str, value: Any) -> None:
        """Set an attribute of the instance, remembering what stood there."""
        self.attributes.append((module, name, module.__dict__.get(name, _ABSENT)))
        setattr(module, name, value)


_ABSENT = object()


def base_of(model: Any) -> Any:
    """Return the transformers model under PEFT, DDP or nothing."""
    while hasattr(model, "module") and isinstance(model.module, torch.nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "peft_config") else model


def text_model_of(model: Any) -> Any:
    """Return the language model without its head: embeddings, decoder layers, last norm."""
    inner = base_of(model).model
    return getattr(inner, "language_model", inner)


def install_kernels(model: Any, settings: KernelsConfig, *, recompute: Recompute = "none", replay: bool = False) -> Any:
    """Put the kernels that `settings` names on a Gemma 4, plain or under PEFT, and return it.

    `recompute` is what the backward pass makes again: nothing, the MLPs' gate and up, all decoder layers, or the first
    so many. `replay` lets passes be captured as CUDA graphs where `settings` and the device allow it; a pass must end
    with its backward pass before the next begins. Installing again replaces what was installed.
    """
    uninstall(model)
    base, text = base_of(model), text_model_of(model)
    done = Installed()
    using = _using(text, settings, recompute)
    if settings.attention == "documents":
        attention.register_attention()
        done.attention = text.config._attn_implementation
        _set_attention(base, attention.NAME)
        hook = partial(attention.before_forward, run=using.run)
        for inner in {id(module): module for module in (base.model, text)}.values():
            done.hooks.append(inner.register_forward_pre_hook(hook, with_kwargs=True))
    done.method(base, "forward", _stoppable(type(base).forward))
    _put_layers(text, done, using)
    chosen = len(text.layers) if recompute == "all" else recompute if isinstance(recompute, int) else 0
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=using.draws)
    for layer in text.layers[:chosen]:
        done.attribute(layer, "gradient_checkpointing", True)
        done.attribute(layer, "_gradient_checkpointing_func", again)
    if replay and _replays(text, settings):
        done.method(text, "forward", Graphs(text, using.run).forward(type(text).forward))
    base.__dict__[_MARK] = done
    return model


def uninstall(model: Any) -> Any:
    """Take the kernels off again and return the model, which is as it was loaded."""
    base = base_of(model)
    done: Installed | None = base.__dict__.pop(_MARK, None)
    if done is None:
        return model
    for module, name in done.methods:
        module.__dict__.pop(name, None)
    for module, name, value in reversed(done.attributes):
        if value is _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, value)
    for hook in done.hooks:
        hook.remove()
    if done.attention is not None:
        _set_attention(base, done.attention)
    return model


def forward_hidden(model: Any, *, keep: Sequence[int] | None = None, **batch: Any) -> Tensor:
    """Return the last hidden states `[B, T, H]` of a model with kernels, normed, ready for the head; no logits are
    made.

    `model` may be wrapped by PEFT or DDP: it is called, so their hooks run. `batch` is what its forward takes
    (`input_ids`, `position_ids`, `cu_seq_lens_q`, `pixel_values`, …).
    """
    if _MARK not in base_of(model).__dict__:
        raise RuntimeError("forward_hidden needs `install`")
    hidden: Tensor = model(**batch, use_cache=False, hidden_only=True)
    return hidden


def _using(text: Any, settings: KernelsConfig, recompute: Recompute) -> Using:
    """Return the settings as they apply to this model on its device."""
    fits = text.config.hidden_activation == layers.ACTIVATION
    device = next(text.parameters()).device.type
    compiled = settings.compile == "regions" or (settings.compile == "auto" and device == "cuda")
    return Using(
        lora=settings.lora == "fused",
        norms=settings.norms == "fused" and fits,
        run=OpRunner(compiled=compiled, strict=settings.compile == "regions"),
        recompute_mlp=recompute == "mlp",
        gelu=fits,
        draws=_draws(text),
    )


def _put_layers(text: Any, done: Installed, using: Using) -> None:
    """Bind the forward passes that `using` asks for."""
    for layer in text.layers:
        if using.lora or using.norms:
            done.method(layer.self_attn, "forward", layers.attention_forward(using))
        if using.norms:
            done.method(layer, "forward", layers.layer_forward(using))
        if using.lora or using.norms or using.recompute_mlp:
            done.method(layer.mlp, "forward", layers.mlp_forward(using))
        if (using.lora or using.recompute_mlp) and hasattr(layer, "experts"):
            done.method(layer.experts, "forward", layers.experts_forward(type(layer.experts).forward, using))
    if using.norms:
        for module in text.modules():
            if type(module).__name__ in ("Gemma4RMSNorm", "Gemma4UnifiedRMSNorm"):
                done.method(module, "forward", layers.norm_forward(using))


def _replays(text: Any, settings: KernelsConfig) -> bool:
    """True if the layers of this model launch the same kernels in every pass, on this device."""
    trainable = [parameter for parameter in text.parameters() if parameter.requires_grad]
    return (
        settings.records
        and bool(trainable)
        and all(triton_here(parameter) for parameter in trainable)
        and not _draws(text)
        and not (
            any(hasattr(layer, "experts") for layer in text.layers) and experts.waits_for_host(trainable[0].device)
        )
    )


def _draws(text: Any) -> bool:
    """True if layers draw random numbers, which a recomputed pass must repeat (keeping a GPU's random state waits for
    it)."""
    return text.config.attention_dropout > 0 or any(
        isinstance(module, torch.nn.Dropout) and module.p > 0 for module in text.modules()
    )


def _stoppable(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward of the whole model that can stop before its head. It keeps the signature, which generation
    reads."""

    @wraps(original)
    def forward(self: Any, *args: Any, hidden_only: bool = False, **kwargs: Any) -> Any:
        if not hidden_only:
            return original(self, *args, **kwargs)
        return self.model(*args, **kwargs).last_hidden_state

    return forward


def _set_attention(base: Any, name: str) -> None:
    """Set the attention implementation of the language model alone: the audio tower refuses any other than its own."""
    if base.config.get_text_config() is base.config:
        base.set_attn_implementation(name)
    else:
        base.set_attn_implementation({"text_config": name})
