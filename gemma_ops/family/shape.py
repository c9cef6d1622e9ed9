"""The dimensions of a Gemma 4 and everything that is counted from them: modules, parameters, the parts of a layer.

Free of torch, so that `gemma-ops plan` and `--help` answer at once. The counts are exact; a test compares each of them
with the models of transformers built on the meta device. Layout of the modules: `modeling_gemma4.py` and
`modeling_gemma4_unified.py` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gemma_ops.errors import ModelError
from gemma_ops.family import towers

MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")
"""`model_type` of the configurations that are read: with towers, text only, and the encoder-free 12B in both forms."""


@dataclass(frozen=True)
class Linear:
    """One `nn.Linear` without bias: its dotted name inside the model, its width on both sides, and its decoder
    layer."""

    name: str
    inputs: int
    outputs: int
    layer: int | None

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    index: int
    window: int | None
    """Tokens that a query sees to its left (sliding-window attention); None for full attention."""
    head_dim: int
    heads: int
    kv_heads: int
    shares_kv: bool
    """Whether the layer takes keys and values from an earlier one: it has no k_proj, v_proj and k_norm of its own."""
    k_eq_v: bool
    """Whether keys serve as values: there is no v_proj."""
    ffn: int
    """Width of the dense MLP (doubled in E2B's sharing layers)."""

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Counts:
    """Parameters by component; the output head is the embedding itself (tied) and counted once."""

    attention: int
    mlp: int
    per_layer_linears: int
    router: int
    experts: int
    embedding: int
    per_layer_table: int
    norms: int
    vision: int
    audio: int

    @property
    def text(self) -> int:
        return self.total - self.vision - self.audio

    @property
    def total(self) -> int:
        return sum(getattr(self, name) for name in self.__dataclass_fields__)


@dataclass(frozen=True)
class Shape:
    """What the configuration of a Gemma 4 checkpoint says about its size."""

    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    context: int
    softcap: float | None
    per_layer_dim: int = 0
    """Width of the per-layer embeddings (PLE); 0 where there are none."""
    per_layer_vocab: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    unified: bool = False
    vision: towers.Vision | towers.PatchVision | None = None
    audio: towers.Audio | towers.FrameAudio | None = None

    def linears(self, prefix: str = "model.language_model.") -> Iterator[Linear]:
        """Yield every `nn.Linear` of the language model, by its name in the classes with towers (`prefix` `model.`
        gives the names of the text-only classes). The head is left out: it is tied to the embedding.
        """
        h, p = self.hidden, self.per_layer_dim
        for layer in self.layers:
            at, q, kv, i = f"{prefix}layers.{layer.index}.", layer.query_width, layer.kv_width, layer.index
            yield Linear(f"{at}self_attn.q_proj", h, q, i)
            if not layer.shares_kv:
                yield Linear(f"{at}self_attn.k_proj", h, kv, i)
                if not layer.k_eq_v:
                    yield Linear(f"{at}self_attn.v_proj", h, kv, i)
            yield Linear(f"{at}self_attn.o_proj", q, h, i)
            yield Linear(f"{at}mlp.gate_proj", h, layer.ffn, i)
            yield Linear(f"{at}mlp.up_proj", h, layer.ffn, i)
            yield Linear(f"{at}mlp.down_proj", layer.ffn, h, i)
            if p:
                yield Linear(f"{at}per_layer_input_gate", h, p, i)
                yield Linear(f"{at}per_layer_projection", p, h, i)
            if self.experts:
                yield Linear(f"{at}router.proj", h, self.experts, i)
        if p:
            yield Linear(f"{prefix}per_layer_model_projection", h, len(self.layers) * p, None)

    def counts(self) -> Counts:
        """Return the parameters by component, exact."""
        return self._counts

    @cached_property
    def _counts(self) -> Counts:
        h, n, p = self.hidden, len(self.layers), self.per_layer_dim
        sums = {"self_attn": 0, "mlp": 0, "per_layer": 0, "router": 0}
        for linear in self.linears():
            sums[next(part for part in sums if f".{part}" in linear.name)] += linear.parameters
        norms = h + (p or 0)
        for layer in self.layers:
            norms += h * (4 + bool(p) + 3 * bool(self.experts)) + layer.head_dim * (1 if layer.shares_kv else 2)
        router_extra = n * (h + self.experts) if self.experts else 0
        return Counts(
            attention=sums["self_attn"],
            mlp=sums["mlp"],
            per_layer_linears=sums["per_layer"],
            router=sums["router"] + router_extra,
            experts=n * self.experts * 3 * h * self.expert_ffn,
            embedding=self.vocab * h,
            per_layer_table=self.per_layer_vocab * n * p,
            norms=norms,
            vision=self.vision.parameters(h) if self.vision else 0,
            audio=self.audio.parameters(h) if self.audio else 0,
        )

    def active_per_token(self) -> int:
        """Return how many parameters of the language model one token multiplies with: no lookup tables, only the chosen
        experts, and the head.
        """
        c = self.counts()
        chosen = len(self.layers) * self.experts_per_token * 3 * self.hidden * self.expert_ffn
        return c.attention + c.mlp + c.per_layer_linears + c.router + chosen + c.embedding

    @property
    def shares_kv(self) -> bool:
        return any(layer.shares_kv for layer in self.layers)

    @staticmethod
    def from_config(config: dict[str, Any]) -> Shape:
        """Read a checkpoint's `config.json`, in either spelling of the per-layer head sizes (`global_head_dim` as
        published, `per_layer_config` as transformers saves since 5.15).

        Raises ModelError when it is not a Gemma 4 or a dimension is missing.
        """
        kind = config.get("model_type")
        if kind not in MODEL_TYPES:
            raise ModelError(
                f"the model is not a Gemma 4: its config.json says model_type {kind!r}",
                "start from a Gemma 4 checkpoint: nano, google/gemma-4-E2B-it, … or a folder that holds one",
            )
        text = config.get("text_config") or config
        try:
            return _read(text, config if text is not config else {}, unified="unified" in str(kind))
        except KeyError as error:
            raise ModelError(
                f"config.json does not say {error.args[0]}", "use a complete Gemma 4 checkpoint folder"
            ) from None


def _read(text: dict[str, Any], outer: dict[str, Any], *, unified: bool) -> Shape:
    """Return the shape of a text configuration and its towers; defaults are those of the configuration classes."""
    count = text["num_hidden_layers"]
    kinds = list(
        text.get("layer_types") or ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(count)]
    )
    kinds[-1] = "full_attention"  # the configuration class forces it
    first_shared = count - (text.get("num_kv_shared_layers") or 0)
    per_layer = text.get("per_layer_config")
    if per_layer is not None:  # keyed by index, which is written padded with zeros ("05"), or by kind of layer
        per_layer = {int(key) if str(key).isdigit() else key: value for key, value in per_layer.items()}
    k_eq_v = bool(text.get("attention_k_eq_v"))
    layers = []
    for index, kind in enumerate(kinds):
        full = kind == "full_attention"
        if per_layer is not None:
            override = per_layer.get(index) or per_layer.get(kind) or {}
        elif full:
            override = {"head_dim": text.get("global_head_dim") or 512}
            if k_eq_v and text.get("num_global_key_value_heads"):
                override["num_key_value_heads"] = text["num_global_key_value_heads"]
        else:
            override = {}
        shares = index >= first_shared
        layers.append(
            Layer(
                index=index,
                window=None if full else text.get("sliding_window", 1024 if unified else 512),
                head_dim=override.get("head_dim", text.get("head_dim", 256)),
                heads=text["num_attention_heads"],
                kv_heads=override.get("num_key_value_heads", text["num_key_value_heads"]),
                shares_kv=shares,
                k_eq_v=k_eq_v and full,
                ffn=text["intermediate_size"] * (2 if shares and text.get("use_double_wide_mlp") else 1),
            )
        )
    per_layer_dim = 0 if unified else text.get("hidden_size_per_layer_input", 256) or 0
    moe = bool(text.get("enable_moe_block"))
    return Shape(
        hidden=text["hidden_size"],
        vocab=text["vocab_size"],
        layers=tuple(layers),
        context=text.get("max_position_embeddings", 262_144 if unified else 131_072),
        softcap=text.get("final_logit_softcapping"),
        per_layer_dim=per_layer_dim,
        per_layer_vocab=text.get("vocab_size_per_layer_input", 262_144) if per_layer_dim else 0,
        experts=text["num_experts"] if moe else 0,
        experts_per_token=text["top_k_experts"] if moe else 0,
        expert_ffn=text["moe_intermediate_size"] if moe else 0,
        unified=unified,
        vision=towers.read_vision(outer.get("vision_config"), unified=unified),
        audio=towers.read_audio(outer.get("audio_config"), unified=unified),
    )
