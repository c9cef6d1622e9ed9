"""4-bit is 4-bit where it should be and nowhere else, counts to the byte, costs no more memory on the way, and computes
what the dequantized bf16 model computes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from gemma_ops import family
from gemma_ops.config import LoraConfig
from gemma_ops.errors import ModelError
from gemma_ops.modeling import adapters, nf4, shards, streaming
from gemma_ops.modeling.audit import audit_model, expected
from gemma_ops.modeling.experts import STACKS, Experts4bit
from gemma_ops.modeling.load import load_model
from gemma_ops.planning import training_memory, training_step
from gemma_ops.runs import journal
from tests.helpers import tiny_models
from tests.helpers.checkpoints import IDS, KINDS, close, gradients, logits, tiny, whole


@pytest.mark.parametrize("piece", [64, 8 * 64, 1 << 30])
def test_quantized_piece_by_piece_is_bitsandbytes_of_the_whole(monkeypatch, piece):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    monkeypatch.setattr(nf4, "_PIECE", {"cpu": piece})
    name = "model.language_model.layers.1.experts.gate_up_proj"
    entry = shards.read_headers([tiny("moe") / "model.safetensors"])[name]
    ours = nf4.quantize_nf4(entry, "cpu")
    packed, state = quantize_4bit(shards.read_tensors(entry), compress_statistics=True, quant_type="nf4")
    assert torch.equal(ours.data, packed)
    assert torch.equal(ours.quant_state.absmax, state.absmax)
    assert torch.equal(ours.quant_state.state2.absmax, state.state2.absmax)
    assert torch.equal(nf4.dequantize_nf4(ours), dequantize_4bit(packed, state))
    assert nf4.size(ours) == nf4.planned_size(entry.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_4bit_lands_on_attention_mlp_and_experts_only(kind):
    model = load_model(tiny(kind), weights="nf4", towers=True)
    kinds = {line.component: line.kind for line in model.audit}
    four = {component for component, held in kinds.items() if held == "nf4"}
    assert four == {"attention", "mlp"} | ({"experts"} if kind == "moe" else set())
    assert set(kinds.values()) == {"nf4", "bf16"}, "nothing is upcast to float32"
    named = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert named == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    if kind == "multimodal":
        assert kinds["vision"] == kinds["audio"] == "bf16"


def test_the_audit_is_in_the_journal(tmp_path):
    with journal.writing(tmp_path, "train") as log:
        model = load_model(tiny("moe"), weights="nf4")
    for line in model.audit:
        assert f'"component": "{line.component}", "kind": "{line.kind}"' in log.read_text()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda name: "router.proj" in name or "_proj" in name, r"router.proj is 4-bit and must not be"),
        (lambda name: "mlp" in name, r"self_attn\.\w_proj is not 4-bit and should be"),
    ],
)
def test_a_wrong_choice_of_modules_is_refused(monkeypatch, wrong, message):
    monkeypatch.setattr(streaming, "wants_4bit", wrong)
    with pytest.raises(ModelError, match=message):
        load_model(tiny("moe"), weights="nf4")


def test_experts_left_in_bf16_are_refused(monkeypatch):
    monkeypatch.setattr(streaming.experts, "Experts4bit", lambda module, storage: module)
    with pytest.raises(ModelError, match=r"experts holds 589824 parameters as bf16 in 1179648 bytes.*as nf4 in 304272"):
        load_model(tiny("moe"), weights="nf4")


def test_an_upcast_tensor_is_refused():
    model = load_model(tiny("e2b"), weights="nf4")
    table = model.model.language_model.embed_tokens_per_layer
    table.weight = torch.nn.Parameter(table.weight.float())
    shape = family.Shape.from_config(model.config.to_dict())
    with pytest.raises(ModelError, match=r"per-layer table holds 393216 parameters as fp32"):
        audit_model(model, shape, "nf4")


def dense_experts(model):
    """The same 4-bit model with transformers' own bf16 experts, which hold what the 4-bit ones stand for."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts

    for layer in model.model.language_model.layers:
        own = Gemma4TextExperts(model.config.text_config).to(torch.bfloat16)
        for name in STACKS:
            getattr(own, name).data = nf4.dequantize_nf4(getattr(layer.experts, name))
        layer.experts = own.eval()
    return model


@pytest.mark.parametrize("recompute", [False, True])
def test_experts_in_4bit_equal_dequantized_ones_bit_for_bit(recompute):
    """Loss and adapter gradients through every layer's experts, with and without recomputation of the layers."""
    found = []
    for model in (load_model(tiny("moe"), weights="nf4"), dense_experts(load_model(tiny("moe"), weights="nf4"))):
        tuned = adapters.attach(model, LoraConfig(rank=4), seed=5).train()
        torch.manual_seed(6)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = tuned(input_ids=IDS, labels=IDS).loss
        loss.backward()
        found.append((loss.detach(), gradients(tuned)))
    (mine, ours), (other, theirs) = found
    assert torch.equal(mine, other)
    assert close(ours, theirs) == 0.0


def test_no_dense_expert_is_kept_for_the_backward_pass():
    """The counter-test is the dense model, which keeps them because they are its parameters."""
    kept = {}
    models = {"4bit": load_model(tiny("moe"), weights="nf4")}
    models["dense"] = dense_experts(load_model(tiny("moe"), weights="nf4"))
    for name, model in models.items():
        stacks = set()

        def pack(tensor, stacks=stacks):
            if tensor.ndim == 3 and tensor.shape[0] == 8 and tensor.dtype == torch.bfloat16:
                stacks.add(tuple(tensor.shape))
            return tensor

        model.requires_grad_(requires_grad=False)
        model.enable_input_require_grads()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(input_ids=IDS)
        kept[name] = stacks
    assert kept["4bit"] == set()
    assert len(kept["dense"]) == 2
    from torch.nn.utils import parametrize

    assert not parametrize._cache


@pytest.mark.parametrize("kind", KINDS)
def test_a_4bit_model_answers_like_the_dequantized_one(kind):
    four, dense = load_model(tiny(kind), weights="nf4"), whole(kind, torch.bfloat16)
    for name, parameter in four.named_parameters():
        if nf4.is_4bit(parameter):
            dense.get_parameter(name).data = nf4.dequantize_nf4(parameter)
    assert torch.equal(logits(four), logits(dense))
    before = nf4.dequantize_nf4(four.model.language_model.layers[0].mlp.up_proj.weight)
    logits(four)  # bitsandbytes would repack linears for AVX512-BF16 here, and dequantize to garbage from now on
    assert torch.equal(nf4.dequantize_nf4(four.model.language_model.layers[0].mlp.up_proj.weight), before)


def test_moving_a_4bit_model_keeps_its_numbers():
    model = load_model(tiny("moe"), weights="nf4")
    before = logits(model)
    assert torch.equal(logits(model.to("cpu")), before)
    assert isinstance(model.model.language_model.layers[0].experts, Experts4bit)


MEASURE = """
import sys, pathlib
from gemma_ops.modeling.load import load_model
def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return 1024 * int(line.split()[1])
load_model(pathlib.Path(sys.argv[1]), weights="nf4")
for weights in ("nf4", "bf16"):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmRSS")
    model = load_model(pathlib.Path(sys.argv[2]), weights=weights)
    print(sum(line.bytes for line in model.audit), status("VmHWM") - before)
    del model
"""


@pytest.mark.slow
def test_loading_never_holds_more_than_the_result_and_one_tensor(tmp_path):
    """A 4-bit load of a 70 MB mixture raises the process's peak by less than its own size and the largest tensor; a
    bf16 load after it does not stay within that."""
    layers = ["sliding_attention", "full_attention"]
    shape = {"hidden_size": 512, "num_experts": 40, "moe_intermediate_size": 256}
    big = tiny_models.save("moe", tmp_path / "big", num_hidden_layers=2, layer_types=layers, **shape)
    largest = max(entry.stop - entry.start for entry in shards.read_headers(sorted(big.glob("*.safetensors"))).values())
    assert largest == 40 * 512 * 512 * 2
    command = [sys.executable, "-c", MEASURE, str(tiny("moe")), str(big)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    (four, four_peak), (whole_size, whole_peak) = (map(int, line.split()) for line in run.stdout.splitlines())
    assert four_peak < four + largest
    assert whole_size > 1.5 * (four + largest)
    assert whole_peak > four + largest


@pytest.mark.parametrize("key", family.SIZES)
@pytest.mark.parametrize("towers", [False, True])
def test_true_sizes_count_to_the_byte(key, towers):
    """Built at true size without memory: what becomes 4-bit, and what each component takes, against the shape's count
    and the plan's."""
    import transformers

    size = family.SIZES[key]
    body = dict(family.CONFIGS[key])
    config = transformers.AutoConfig.for_model(**body)
    if not towers:
        config.vision_config = config.audio_config = None
    kind = "Gemma4Unified" if "unified" in body["model_type"] else "Gemma4"
    model = streaming.build_streamed(getattr(transformers, f"{kind}ForConditionalGeneration"), config, torch.bfloat16)
    streaming.quantizable(model)
    lines = {line.component: line for line in audit_model(model, size.shape, "nf4")}
    text = [line for component, line in lines.items() if component not in ("vision", "audio")]
    step = training_step.PassShape("nf4", rank=0, linears=(), tokens=1, length=1)
    planned = sum(part.bytes for part in training_memory.weight_parts(size.shape, step))
    assert sum(line.bytes for line in text) == pytest.approx(planned, rel=1e-6)
    assert lines == {line.component: line for line in expected(size.shape, "nf4") if line.component in lines}
    assert ("vision" in lines) == towers
    four = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert four == {linear.name for linear in family.lora_linears(size.shape)}
    stacks = [module for module in model.modules() if isinstance(module, Experts4bit)]
    assert len(stacks) == (30 if key == "26B-A4B" else 0)
    assert all(nf4.is_4bit(getattr(module, name)) for module in stacks for name in STACKS)
