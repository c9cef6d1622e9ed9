"""Layers of a language model as CUDA graphs: a pass is captured once and replayed, forward and backward.

Launching the kernels of a pass takes the interpreter longer than a large GPU takes to run them: E2B on an H200 spends
0.3 s on 7,700 tokens of which the GPU works 0.2. A graph launches all of them at once. What is recorded is the stack
between the embeddings and the head, for rows of a rounded length (`graphs_inputs`); embeddings, head, loss and
optimizer run as ever. Every length is run once before it is recorded, so that nothing is compiled or loaded meanwhile.
Gradients are added up in fixed memory that becomes the parameters' `grad`.

Recorded is only what is the same every time: training of adapters in one process, a row of documents with their bounds,
no images that see themselves whole, nothing random, no autocast, and no documents that are computed faster in batches
of their own (`attention_packed.steady`). Anything else, and a GPU that refuses, runs as it did.
"""

from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import attention_packed, graphs_capture, lora_casts
from gemma_ops.kernels.attention_spans import Pattern
from gemma_ops.kernels.graphs_capture import Tape
from gemma_ops.kernels.graphs_inputs import Room, Slots, room_for
from gemma_ops.kernels.ops_runner import OpRunner

MOST = 24
"""Most lengths that are kept; the least recently used goes. All share one pool of memory, as only one is in use at a
time."""
_PLAIN = {"cu_seq_lens_q", "logits_to_keep", "return_dict", "use_cache", "mm_token_type_ids", "labels"}
"""Arguments of a forward pass that don't change what the layers compute (`logits_to_keep` as long as it is 0: layers
that share keys are given no more rows than that)."""


class Graphs:
    """The captured passes of one language model (`text`). `tape` makes what captures a function and replays it."""

    def __init__(self, text: Any, run: OpRunner, tape: Callable[[], Tape] | None = None) -> None:
        self.text, self.run = text, run
        self.tape = tape or graphs_capture.Graph.maker()
        self.kept: OrderedDict[Room, Recorded] = OrderedDict()
        self.sums: Sums | None = None
        self.heads = int(text.config.num_attention_heads)
        self.width = max(layer.self_attn.head_dim for layer in text.layers)
        self.on = True

    def forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return the language model's forward pass, which replays what it can."""

        @wraps(original)
        def forward(model: Any, *args: Any, **kwargs: Any) -> Any:
            cuts = self._cuts(args, kwargs) if self.on else None
            if cuts is None:
                return original(model, *args, **kwargs)
            embeds, per_layer = _inputs(model, kwargs)
            learns = embeds.requires_grad or (per_layer is not None and per_layer.requires_grad)
            if learns or (embeds.is_cuda and embeds.dtype not in attention_packed.HALF):
                given = {"input_ids": None, "inputs_embeds": embeds}
                own = {} if per_layer is None else {"per_layer_inputs": per_layer}
                return original(model, **(kwargs | given | own))
            recorded: Recorded | None = None
            words = [""]
            try:
                recorded = self._recorded(original, cuts, embeds, per_layer, kwargs["position_ids"])
            except Exception as error:
                words = str(error).splitlines() or [type(error).__name__]
            if recorded is None:  # only now is the error gone, whose traceback held the memory of what failed
                self._give_up(words[0])
                return original(model, *args, **kwargs)
            recorded.slots.fill(cuts, embeds, per_layer, kwargs["position_ids"])
            hidden = _Replay.apply(recorded.sums.anchor, recorded, embeds.shape[1])
            return recorded.kind(last_hidden_state=hidden)

        return forward

    def _cuts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int] | None:
        """Return the documents of a pass that can be replayed."""
        masks, ids, embeds = (kwargs.get(name) for name in ("attention_mask", "input_ids", "inputs_embeds"))
        given = ids if embeds is None else embeds
        learning = torch.is_grad_enabled() and self.text.training
        if args or not learning or given is None or not isinstance(masks, dict):
            return None
        full, sliding = masks.get("full_attention"), masks.get("sliding_attention")
        if not isinstance(full, Pattern) or full is not sliding or given.shape[0] != 1:
            return None
        named = {"attention_mask", "input_ids", "inputs_embeds", "per_layer_inputs", "position_ids"} | _PLAIN
        if any(value is not None and name not in named for name, value in kwargs.items()):
            return None
        last = kwargs.get("logits_to_keep")
        if kwargs.get("position_ids") is None or (isinstance(last, int) and last):
            return None
        if torch.is_autocast_enabled(given.device.type):
            return None
        cuts: list[int] | None = full.cuts(1, given.shape[1])  # type: ignore[union-attr]
        longest = full.longest(1, given.shape[1]) if cuts else 0  # type: ignore[union-attr]
        return cuts if attention_packed.steady(self.heads, self.width, longest, given.device) else None

    def _recorded(
        self, original: Callable[..., Any], cuts: list[int], embeds: Tensor, per_layer: Tensor | None, places: Tensor
    ) -> Recorded:
        need = room_for(cuts)
        if self.sums is None:
            self.sums = Sums([one for one in self.text.parameters() if one.requires_grad])
        found = next((one for room, one in self.kept.items() if room.holds(need) and one.valid()), None)
        if found is None:
            smaller = [room for room in self.kept if room.tokens == need.tokens]
            for room in smaller:
                need = need.joined(room)  # one capture a length, which soon holds all there is
            longest = max((one.slots for one in self.kept.values()), key=lambda one: one.room.tokens, default=None)
            slots = Slots(need, embeds, per_layer, places, longest)
            slots.fill(cuts, embeds, per_layer, places)
            found = Recorded(lambda: original(self.text, **slots.arguments(self.run)), slots, self.sums, self.tape)
            # Others go after it is there: the pool they share ends with the last capture in it.
            for room in smaller:
                del self.kept[room]
            while len(self.kept) >= MOST:
                self.kept.popitem(last=False)
            self.kept[need] = found
        self.kept.move_to_end(found.slots.room)
        return found

    def _give_up(self, reason: str) -> None:
        warnings.warn(f"passes can't be captured as CUDA graphs; training goes on without them: {reason}", stacklevel=3)
        self.on = False
        self.kept.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Sums:
    """Gradient buffers of `parameters` (float32): fixed memory, which becomes their `grad`."""

    def __init__(self, parameters: list[Any]) -> None:
        if any(one.dtype != torch.float32 for one in parameters):
            raise TypeError("gradients are added up in float32, and not all parameters that learn are")
        self.parameters = parameters
        device = parameters[0].device if parameters else torch.device("cpu")
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        """Tensor that makes a replay part of the autograd graph, which has no other input that learns."""
        self.whole = torch.zeros(sum(one.numel() for one in parameters), dtype=torch.float32, device=device)
        self.passes = 0
        """Number of passes that were replayed: only the last one's activations are there."""
        parts = self.whole.split([one.numel() for one in parameters])
        self.parts = [part.view(one.shape) for part, one in zip(parts, parameters, strict=True)]

    def adopt(self) -> None:
        """Set every parameter's `grad` to this memory, with its present value or zero."""
        grads = [one.grad for one in self.parameters]
        if all(grad is None for grad in grads):
            self.whole.zero_()
            for one, part in zip(self.parameters, self.parts, strict=True):
                one.grad = part
            return
        for one, grad, part in zip(self.parameters, grads, self.parts, strict=True):
            if grad is part:
                continue
            if grad is None:
                part.zero_()
            else:
                part.copy_(grad)
            one.grad = part


class Recorded:
    """The captured pass of one length. `run` computes the layers from `graphs_inputs`."""

    def __init__(self, run: Callable[[], Any], slots: Slots, sums: Sums, tape: Callable[[], Tape]) -> None:
        self.run, self.slots, self.sums = run, slots, sums
        self.kind: Any = None
        self.out: Any = None
        self._live: Any = None
        self.read = self._read()
        self.there, self.back = tape(), tape()
        collects = gc.isenabled()
        gc.disable()  # what it frees meanwhile is not this pass's to free
        try:
            self.there.prepare(self._once)
            self._live = None
            self.there.record(self._forward)
            self.back.record(self._backward)
        finally:
            self._live = self._live if self.there.again else None
            if collects:
                gc.enable()

    def valid(self) -> bool:
        """True if adapters are still where they were, with copies for their products that are up to date, or without
        any."""
        return self.read == self._read()

    def _read(self) -> list[Any]:
        some = [*self.sums.parameters[:1], *self.sums.parameters[-1:]]
        return [(one.data_ptr(), lora_casts.fresh(one, torch.bfloat16)) for one in some]

    def _forward(self) -> None:
        with torch.enable_grad():
            found = self.run()
        self.kind = type(found)
        self._live = found.last_hidden_state
        self.out = self._live.detach()

    def _once(self) -> None:
        self._forward()
        self._gradients()

    def _gradients(self) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            self._live, self.sums.parameters, self.slots.outer, allow_unused=True
        )
        return found

    def _backward(self) -> None:
        found = [(part, own) for part, own in zip(self.sums.parts, self._gradients(), strict=True) if own is not None]
        torch._foreach_add_([part for part, _ in found], [own for _, own in found])


class _Replay(torch.autograd.Function):  # type: ignore[misc]
    """Replay of the pass in the slots, which gives hidden states [1, length, H]. They stand until the next replay."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, recorded: Recorded, length: int) -> Tensor:
        recorded.sums.passes += 1
        ctx.recorded, ctx.length, ctx.number = recorded, length, recorded.sums.passes
        recorded.there.play()
        return recorded.out[:, :length]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[None, None, None]:
        recorded = ctx.recorded
        if ctx.number != recorded.sums.passes:
            raise RuntimeError(
                "another pass was replayed before this one's backward pass: install kernels without `replay`"
            )
        recorded.sums.adopt()
        recorded.slots.outer[:, : ctx.length].copy_(outer)
        recorded.slots.outer[:, ctx.length :].zero_()
        recorded.back.play()
        return None, None, None


def _inputs(text: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Return embeddings [1, T, H], and rows of the per-layer table [1, T, L, P] where the model has one."""
    embeds, per_layer, ids = (kwargs.get(name) for name in ("inputs_embeds", "per_layer_inputs", "input_ids"))
    if embeds is None:
        embeds = text.embed_tokens(ids)
    if per_layer is None and getattr(text, "hidden_size_per_layer_input", None):
        per_layer = text.get_per_layer_inputs(ids, embeds)
    return embeds, per_layer
