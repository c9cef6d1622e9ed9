"""LoRA on experts: PEFT's own mathematics and layout, on dense and on 4-bit stacks, without a stack of its own."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from gemma_ops import family
from gemma_ops.config import LoraConfig
from gemma_ops.errors import ModelError
from gemma_ops.modeling import adapters, expert_lora, nf4, streaming
from gemma_ops.modeling.load import load_model
from tests.helpers.checkpoints import IDS, close, gradients, logits, tiny, whole


def four_bit_fp32():
    """The 4-bit mixture with float32 in between, so that differences are rounding of float32 and not of bf16."""
    folder = tiny("moe")
    files = streaming.streamed_entries(folder, "gemma4")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vision_config = config.audio_config = None
    model = streaming.build_streamed(transformers.Gemma4ForConditionalGeneration, config, torch.float32)
    streaming.quantizable(model)
    streaming.fill_streamed(model, files, "cpu", torch.float32)
    model.is_loaded_in_4bit = True
    return model


def dequantized():
    """transformers' own dense model with the numbers the 4-bit one stands for."""
    model = whole("moe")
    for name, parameter in four_bit_fp32().named_parameters():
        if nf4.is_4bit(parameter):
            model.get_parameter(name).data = nf4.dequantize_nf4(parameter)
    return model


def by_peft(model, rank):
    """The same adapter put on by PEFT itself."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=6,
        target_modules=family.LORA_TARGETS,
        target_parameters=list(family.EXPERT_TARGETS),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def stir(model):
    """Random factors that depend on nothing but their name and shape."""
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_" in name:
            torch.manual_seed(sum(map(ord, name)))
            parameter.data.normal_(std=0.1)
    return model.train()


def step(model, *, recompute=False):
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("base", ["dense", "4bit"])
def test_gradients_equal_pefts_on_the_dense_model(base, rank, recompute):
    """Every factor's gradient, of experts and linears; PEFT folds `W + s B A` and lets autograd do the rest."""
    model = whole("moe") if base == "dense" else four_bit_fp32()
    ours = stir(adapters.attach(model, LoraConfig(rank=rank, alpha=6, experts=True), seed=1))
    theirs = stir(by_peft(whole("moe") if base == "dense" else dequantized(), rank))
    names = [{name for name, p in tuned.named_parameters() if p.requires_grad} for tuned in (ours, theirs)]
    assert names[0] == names[1]
    assert sum(".experts." in name for name in names[0]) == 6 * 4
    (mine, our_gradients), (other, their_gradients) = step(ours, recompute=recompute), step(theirs)
    assert mine == pytest.approx(other, abs=1e-5)
    assert close(our_gradients, their_gradients) < 1e-5


def test_a_missing_expert_update_would_be_seen():
    """The counter-test: without the low-rank product the loss is another and the factors get no gradient."""
    tuned = stir(adapters.attach(four_bit_fp32(), LoraConfig(rank=4, alpha=6, experts=True), seed=1))
    right, _ = step(tuned)
    tuned.zero_grad()
    for module in tuned.modules():
        if isinstance(module, expert_lora.ExpertLora):
            module.enable_adapters(enabled=False)
    wrong, found = step(tuned)
    assert abs(right - wrong) > 1e-3
    assert not any(".experts." in name for name in found)


def test_no_adapted_stack_is_kept_for_the_backward_pass():
    """PEFT keeps `W + s B A` of every layer; here only rows and factors are kept."""
    shapes = {(8, 128, 64), (8, 64, 64), (8, 64, 128)}
    kept = {}
    for name, model in (
        ("ours", adapters.attach(whole("moe"), LoraConfig(rank=4, experts=True), seed=1)),
        ("4bit", adapters.attach(four_bit_fp32(), LoraConfig(rank=4, experts=True), seed=1)),
        ("peft", by_peft(whole("moe"), 4)),
    ):
        parameters = {parameter.data_ptr() for parameter in model.parameters()}
        stacks = set()

        def pack(tensor, parameters=parameters, stacks=stacks):
            if tuple(tensor.shape) in shapes and tensor.data_ptr() not in parameters:
                stacks.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(input_ids=IDS)
        kept[name] = len(stacks)
    assert kept["ours"] == kept["4bit"] == 0
    assert kept["peft"] >= 12


def test_files_have_pefts_layout(tmp_path):
    ours = stir(adapters.attach(whole("moe"), LoraConfig(rank=4, alpha=6, experts=True), seed=1))
    adapters.save_adapter(ours, tmp_path / "ours", "base", None)
    theirs = stir(by_peft(whole("moe"), 4))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    mine, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert set(mine) == set(other)
    assert all(torch.equal(mine[name], other[name]) for name in other)
    back = adapters.load_adapter(load_model(tiny("moe"), weights="fp32"), tmp_path / "theirs")
    assert torch.allclose(logits(back), logits(theirs.eval()), atol=2e-4)


@pytest.mark.parametrize("stack", family.EXPERT_TARGETS)
def test_an_adapter_of_one_stack_only_is_loaded(stack, tmp_path):
    config = peft.LoraConfig(
        r=4, target_modules=family.LORA_TARGETS, target_parameters=[stack], alpha_pattern={stack: 32}
    )
    theirs = stir(peft.get_peft_model(whole("moe"), config)).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = adapters.load_adapter(load_model(tiny("moe"), weights="fp32"), tmp_path)
    assert torch.allclose(logits(ours), logits(theirs), atol=2e-4)


def test_merging_into_4bit_experts_is_refused_and_into_dense_ones_is_exact():
    tuned = stir(adapters.attach(four_bit_fp32(), LoraConfig(rank=4, experts=True), seed=1))
    with pytest.raises(ModelError, match="can't be merged into 4-bit"):
        tuned.merge_and_unload()
    tuned = stir(adapters.attach(whole("moe"), LoraConfig(rank=4, experts=True), seed=1)).eval()
    before = logits(tuned)
    assert torch.allclose(logits(tuned.merge_and_unload()), before, atol=1e-4)


def test_switching_the_adapter_off_gives_the_base():
    base = logits(four_bit_fp32())
    tuned = stir(adapters.attach(four_bit_fp32(), LoraConfig(rank=4, experts=True), seed=1)).eval()
    assert not torch.allclose(logits(tuned), base, atol=1e-2)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), base)
