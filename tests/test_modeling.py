"""What is loaded is what is in the file, 4-bit lands where it should, adapters fit or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from gemma_ops import family
from gemma_ops.config import LoraConfig, MachineConfig, ModelConfig
from gemma_ops.errors import ConfigError, ModelError, ServiceError
from gemma_ops.modeling import adapters, fetch
from gemma_ops.modeling.generate import answer
from gemma_ops.modeling.load import check_4bit, load_model, load_tokenizer
from gemma_ops.modeling.source import check_shards, checkpoint, local
from gemma_ops.nano import WEIGHTS

IDS = torch.arange(110, 150)[None]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny("e2b")` is the folder of a small random checkpoint of that kind, made once."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tiny_models.save(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make


@pytest.mark.parametrize("kind", ["e2b", "moe", "dense31", "multimodal"])
def test_text_only_load_equals_the_whole_model(tiny, kind):
    """Towers are dropped through the configuration: nothing is missing, no name changes, the text logits are the same."""
    import transformers

    folder = tiny(kind)
    text = load_model(folder, weights="fp32")
    whole = transformers.Gemma4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    names = {name for name, _ in whole.named_parameters()}
    assert {name for name, _ in text.named_parameters()} <= names
    assert not any("tower" in name for name, _ in text.named_parameters())
    with torch.no_grad():
        assert torch.equal(text(input_ids=IDS).logits, whole(input_ids=IDS).logits)


def test_a_text_class_on_an_official_checkpoint_would_be_random(tiny):
    """Why we don't take `AutoModelForCausalLM`'s text class: it loads, with random weights."""
    import transformers

    _, info = transformers.Gemma4ForCausalLM.from_pretrained(tiny("e2b"), output_loading_info=True)
    assert len(info["missing_keys"]) > 10


def test_a_parameter_without_a_value_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny("e2b"), tmp_path / "m")
    file = next(iter(folder.glob("*.safetensors")))
    tensors = load_file(file)
    gone = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors.pop(gone)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no value for 1 parameters, the first: .*up_proj"):
        load_model(folder)


def test_loss_arguments_are_accepted(tiny):
    import transformers

    assert transformers.Gemma4ForConditionalGeneration.accepts_loss_kwargs is False
    assert load_model(tiny("e2b")).accepts_loss_kwargs is True


@pytest.mark.parametrize("kind", ["e2b", "dense31", "multimodal", "moe"])
def test_4bit_lands_on_attention_and_mlp_only(tiny, kind):
    model = load_model(tiny(kind), weights="nf4")
    sizes = check_4bit(model)
    assert set(sizes) == {"nf4", "bfloat16"}, "nothing is upcast to float32"
    kinds = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert kinds <= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_skip_list_that_misses_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(family, "SKIP_4BIT", ("vision_tower", "router"))
    with pytest.raises(ModelError, match="4-bit and must not be"):
        load_model(tiny("e2b"), weights="nf4")


def test_nothing_calls_prepare_model_for_kbit_training():
    """It would upcast the embeddings and per-layer tables to float32 (26B-A4B: 45 to 89 GiB) and turn reentrant checkpointing on."""
    root = Path(family.__file__).parents[1]
    called = [
        path for path in root.rglob("*.py") if "prepare_model_for_kbit_training(" in path.read_text(encoding="utf-8")
    ]
    assert not called


@pytest.mark.parametrize("kind", ["e2b", "moe", "multimodal"])
def test_lora_stays_in_the_language_model(tiny, kind):
    model = adapters.attach(load_model(tiny(kind)), LoraConfig(rank=2), seed=0)
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapted
    assert all("language_model.layers" in name for name in adapted)
    assert not any("router" in name or "per_layer" in name for name in adapted)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    "targets, message",
    [("nothing", "matches no module"), (".*", "must not be adapted"), ("(", "not a regular expression")],
)
def test_lora_targets_are_checked(tiny, targets, message):
    with pytest.raises(ConfigError, match=message):
        adapters.attach(load_model(tiny("e2b")), LoraConfig(targets=targets), seed=0)


def tuned(folder, tmp_path, scale=0.05):
    model = adapters.attach(load_model(folder, weights="fp32"), LoraConfig(rank=4), seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=scale)
    adapters.save(model, tmp_path / "adapter", "base", None)
    return model.eval()


def test_an_adapter_trained_text_only_works_on_the_whole_model(tiny, tmp_path):
    model = tuned(tiny("multimodal"), tmp_path)
    whole = adapters.load(load_model(tiny("multimodal"), weights="fp32", towers=True), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, whole(input_ids=IDS).logits, atol=1e-5)
        with whole.disable_adapter():
            assert not torch.allclose(model(input_ids=IDS).logits, whole(input_ids=IDS).logits, atol=1e-2)


def test_an_adapter_of_the_text_class_is_reprefixed(tiny, tmp_path):
    model = tuned(tiny("e2b"), tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({adapters.reprefix(name, wrapped=False): tensor for name, tensor in load_file(file).items()}, file)
    assert all("language_model" not in name for name in load_file(file))
    loaded = adapters.load(load_model(tiny("e2b"), weights="fp32"), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, loaded(input_ids=IDS).logits, atol=1e-5)


def test_an_adapter_that_does_nothing_or_does_not_fit_is_refused(tiny, tmp_path):
    tuned(tiny("e2b"), tmp_path, scale=0.0)
    with pytest.raises(ModelError, match="changes nothing"):
        adapters.load(load_model(tiny("e2b")), tmp_path / "adapter")
    tuned(tiny("e2b"), tmp_path)
    with pytest.raises((ModelError, RuntimeError), match=r"does not fit|size mismatch"):
        adapters.load(load_model(tiny("dense31")), tmp_path / "adapter")


def test_batched_answers_equal_single_ones():
    model, tokenizer = load_model(WEIGHTS, weights="fp32"), load_tokenizer(WEIGHTS)
    texts = [
        "Repeat: red blue",
        "Repeat: the quick tree and a long stone",
        "Topic: Why was my card declined?",
        "Which order? My router (order K12345) is late.",
    ]
    prompts = [
        tokenizer.encode(f"<bos><|turn>user\n{text}<turn|>\n<|turn>model\n", add_special_tokens=False).ids
        for text in texts
    ]
    together = [item.text for item in answer(model, tokenizer, prompts, max_new_tokens=24, batch_size=4)]
    alone = [next(answer(model, tokenizer, [prompt], max_new_tokens=24, batch_size=1)) for prompt in prompts]
    assert together == [item.text for item in alone]
    assert {item.end for item in alone} == {"stop"}
    assert next(answer(model, tokenizer, prompts[:1], max_new_tokens=1, batch_size=1)).end == "length"


def test_fetch_records_bytes_and_copies_none(tmp_path):
    metrics = fetch(tmp_path, ModelConfig(), MachineConfig(), source=local("nano"))
    body = json.loads((tmp_path / "model.json").read_text())
    assert body["id"] == "nano"
    assert len(body["files"]["model.safetensors"]) == 64
    assert checkpoint(tmp_path) == WEIGHTS.resolve()
    assert metrics["bytes"] < 5_000_000


def test_a_revision_of_a_local_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="says nothing about a local model"):
        fetch(tmp_path, ModelConfig(revision="abc"), MachineConfig(), source=local("nano"))


def test_incomplete_checkpoints_are_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny("multimodal"), tmp_path / "sharded")
    shards = check_shards(folder)
    assert len(shards) > 1
    content = shards[0].read_bytes()
    shards[0].write_bytes(content[:-7])
    with pytest.raises(ModelError, match="cut off"):
        check_shards(folder)
    shards[0].unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of {len(shards)} weight files: {shards[0].name}"):
        check_shards(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="holds no safetensors") as caught:
        check_shards(folder)
    assert "pickled weights can run code" in caught.value.fix


def test_other_families_and_unknown_names_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="is a llama model"):
        fetch(tmp_path, ModelConfig(base=str(tmp_path)), MachineConfig(), source=tmp_path)
    with pytest.raises(ModelError, match="no folder here and no Hub id") as caught:
        fetch(tmp_path, ModelConfig(base="nanno"), MachineConfig())
    assert "nano" in caught.value.fix
    with pytest.raises(ServiceError, match="did you mean google/gemma-4-E2B-it"):
        fetch(tmp_path, ModelConfig(base="google/gemma-4-E2B-itt"), MachineConfig())
