"""The step `merge`: against PEFT's own merge, and everything it must refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemma_ops.config import MachineConfig, MergeConfig
from gemma_ops.data import chat
from gemma_ops.errors import GateError, MachineError, ModelError, OpsError
from gemma_ops.export import merge
from gemma_ops.export.checkpoint import INDEX, MergedCheckpoint
from gemma_ops.export.folder import both_spellings, check_room
from gemma_ops.family import LORA_TARGETS, Shape
from gemma_ops.runs import digest
from tests.helpers import tiny_models

MACHINE = MachineConfig(device="cpu")
Bases = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """A base checkpoint of each kind, made once."""
    made: dict[str, Path] = {}

    def base(kind: Any) -> Path:
        if kind not in made:
            made[kind] = tiny_models.save(kind, tmp_path_factory.mktemp("base") / kind)
        return made[kind]

    return base


def train(base: Path, out: Path, *, text_only: bool = False, zero: bool = False, **options: Any) -> Any:
    """A PEFT adapter with random factors on a base, saved to `out/adapter`; returns the PEFT model."""
    import transformers
    from peft import LoraConfig, get_peft_model

    if text_only:
        config = transformers.AutoConfig.from_pretrained(base).text_config
        mapping = {r"^model\.language_model\.": "model."}
        model = transformers.Gemma4ForCausalLM.from_pretrained(
            base, config=config, key_mapping=mapping, dtype=torch.bfloat16
        )
    else:
        model = transformers.Gemma4ForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LORA_TARGETS, "task_type": "CAUSAL_LM"} | options
    adapted = get_peft_model(model, LoraConfig(**settings)).eval()
    random = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name and not zero:
            parameter.data.normal_(0, 0.05, generator=random)
    adapted.save_pretrained(out / "adapter")
    return adapted


def run(tmp_path: Path, base: Path, adapter: Path) -> dict[str, float]:
    out = tmp_path / "merge.partial"
    out.mkdir(exist_ok=True)
    return merge(out, MergeConfig(canary_prompts=2), MACHINE, base=base, adapter=adapter)


EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
PATTERNS = {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6}, "alpha_pattern": {"o_proj": 32}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("e2b", {}),
        ("e2b", {"use_rslora": True, "text_only": True}),
        ("dense31", PATTERNS),
        ("dense31", {"use_dora": True}),
        ("e2b", {"use_dora": True, "use_rslora": True, "text_only": True}),
        ("moe", EXPERTS | {"alpha_pattern": {r"layers\.1\.experts\.down_proj": 3}}),
        ("multimodal", {}),
        ("unified", {}),
    ],
)
def test_equals_pefts_merge_within_one_rounding(
    tmp_path: Path, bases: Bases, kind: str, options: dict[str, Any]
) -> None:
    base = bases(kind)
    adapted = train(base, tmp_path / "train", **options)
    metrics = run(tmp_path, base, tmp_path / "train")
    before, after = MergedCheckpoint(base), MergedCheckpoint(tmp_path / "merge.partial" / "model")
    assert list(after.entries) == list(before.entries)
    theirs = adapted.merge_and_unload().state_dict()
    if options.get("text_only"):
        theirs = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in theirs.items()}
    changed = 0
    for name in after.entries:
        ours = after.read(name)
        changed += not torch.equal(ours, before.read(name))
        if name in theirs:
            # PEFT rounds the update and then the sum: two roundings to 8 bits of mantissa against our one.
            torch.testing.assert_close(ours.float(), theirs[name].float(), rtol=2**-7, atol=2**-10)
    assert changed == metrics["tensors_updated"]
    assert metrics["canary/max_logit_change"] > 0.1
    # The adapter in fp32 beside bf16 weights against one rounded sum: a fraction of what the adapter changes. In a
    # random mixture of experts rounding alone sends tokens to other experts, differently from run to run, so the
    # largest gap says nothing there; its tensors were compared above, each within one rounding.
    if kind != "moe":
        assert metrics["canary/max_adapter_gap"] < 0.25 * metrics["canary/max_logit_change"]


def test_merged_folder_is_complete_and_says_head_sizes_in_both_spellings(tmp_path: Path, bases: Bases) -> None:
    base = bases("multimodal")
    (tmp_path / "base").mkdir()
    for file in base.iterdir():
        (tmp_path / "base" / file.name).symlink_to(file)
    (tmp_path / "base" / "processor_config.json").write_text('{"image_mean": [0.5]}')
    (tmp_path / "base" / "chat_template.jinja").unlink()
    train(base, tmp_path / "train")
    run(tmp_path, tmp_path / "base", tmp_path / "train")
    merged = tmp_path / "merge.partial" / "model"
    assert {file.name for file in merged.iterdir()} == {file.name for file in base.iterdir()} | {
        "processor_config.json",
        "learned.json",
    }
    assert (merged / INDEX).read_bytes() == (base / INDEX).read_bytes()
    assert (merged / "chat_template.jinja").read_text() == chat.inference_template()
    config = json.loads((merged / "config.json").read_text())
    text = config["text_config"]
    assert (text["global_head_dim"], text["num_global_key_value_heads"]) == (64, None)
    assert text["per_layer_config"] == {"2": {"head_dim": 64}, "5": {"head_dim": 64}}
    new_only = {**config, "text_config": {key: value for key, value in text.items() if "global" not in key}}
    old_only = {**config, "text_config": {key: value for key, value in text.items() if key != "per_layer_config"}}
    assert Shape.from_config(new_only) == Shape.from_config(old_only) == Shape.from_config(config)
    stops = json.loads((merged / "generation_config.json").read_text())["eos_token_id"]
    ids = chat.load_tokenizer(merged)
    assert [ids.id_to_token(stop) for stop in stops] == ["<eos>", "<turn|>", "<|tool_response>"]


def test_head_sizes_get_the_spelling_that_is_missing() -> None:
    """transformers 5.15 and later save only `per_layer_config`; readers older than that know only the other names."""
    saved = {
        "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16, "attention_k_eq_v": True,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "per_layer_config": {index: {"head_dim": 32, "num_key_value_heads": 1} for index in ("1", "3")},
    }  # fmt: skip
    text = both_spellings({"model_type": "gemma4", "text_config": saved})["text_config"]
    assert (text["global_head_dim"], text["num_global_key_value_heads"]) == (32, 1)
    assert text["per_layer_config"] == saved["per_layer_config"]
    older = {key: value for key, value in text.items() if key != "per_layer_config"}
    assert (
        both_spellings({"model_type": "gemma4", "text_config": older})["text_config"]["per_layer_config"]
        == saved["per_layer_config"]
    )


def test_packed_weights_are_refused_whatever_the_config_says(tmp_path: Path, bases: Bases) -> None:
    """A 4-bit file whose config.json has lost its `quantization_config` still holds bytes, not numbers."""
    from safetensors.torch import load_file, save_file

    train(bases("e2b"), tmp_path / "train")
    base = shutil.copytree(bases("e2b"), tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name].view(torch.uint8)
    save_file(tensors, file)
    with pytest.raises(ModelError, match="holds U8 tensors"):
        run(tmp_path, base, tmp_path / "train")


def test_a_quantized_checkpoint_is_no_source(tmp_path: Path, bases: Bases) -> None:
    """Before anything is loaded, and so for `quantize` too, which loads no model to read one."""
    base = shutil.copytree(bases("e2b"), tmp_path / "base")
    edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ModelError, match="has a quantization_config"):
        MergedCheckpoint(base)


def test_missing_stop_tokens_are_added(tmp_path: Path, bases: Bases) -> None:
    base = shutil.copytree(bases("dense31"), tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": 1, "top_k": 64}')
    train(base, tmp_path / "train")
    run(tmp_path, base, tmp_path / "train")
    settings = json.loads((tmp_path / "merge.partial" / "model" / "generation_config.json").read_text())
    assert len(settings["eos_token_id"]) == 3
    assert settings["top_k"] == 64


def test_answers_come_from_validation_rows(tmp_path: Path, bases: Bases) -> None:
    row = {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}], "tools": None}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "valid.jsonl").write_text(json.dumps(row) + "\n")
    train(bases("dense31"), tmp_path / "train")
    out = tmp_path / "merge.partial"
    out.mkdir()
    merge(out, MergeConfig(), MACHINE, base=bases("dense31"), adapter=tmp_path / "train", data=tmp_path / "data")
    report = json.loads((out / "report.json").read_text())
    assert report["canary"]["prompts"] == 1
    assert report["updated"] == len(report["relative_change"]) == 6 * 7 - 2  # two layers have no v_proj
    assert report["updated"] + report["untouched"] == report["tensors"]


def test_goes_on_after_a_kill_with_the_same_bytes(tmp_path: Path, bases: Bases) -> None:
    base = bases("multimodal")
    train(base, tmp_path / "train")
    run(tmp_path, base, tmp_path / "train")
    whole = tmp_path / "whole"
    (tmp_path / "merge.partial").rename(whole)
    killed = tmp_path / "merge.partial" / "model"
    killed.mkdir(parents=True)
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    shutil.copyfile(whole / "model" / shards[0], killed / shards[0])
    (killed / (shards[1] + ".tmp")).write_bytes((whole / "model" / shards[1]).read_bytes()[:1000])
    first = (killed / shards[0]).stat().st_mtime_ns
    run(tmp_path, base, tmp_path / "train")
    assert digest.of_path(tmp_path / "merge.partial") == digest.of_path(whole)
    assert (killed / shards[0]).stat().st_mtime_ns == first


def test_full_disk_leaves_nothing_that_looks_whole(tmp_path: Path, bases: Bases) -> None:
    train(bases("dense31"), tmp_path / "train")
    target = tmp_path / "merge.partial" / "model"
    target.mkdir(parents=True)
    (target / "model.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, bases("dense31"), tmp_path / "train")
    assert list(target.iterdir()) == []


def test_untrained_adapter_is_refused(tmp_path: Path, bases: Bases) -> None:
    train(bases("dense31"), tmp_path / "train", zero=True)
    with pytest.raises(GateError, match="changes nothing"):
        run(tmp_path, bases("dense31"), tmp_path / "train")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_adapters_that_cannot_be_folded_are_refused(tmp_path: Path, bases: Bases) -> None:
    base = bases("dense31")
    train(base, tmp_path / "saved", modules_to_save=["embed_tokens"])
    train(base, tmp_path / "plain")
    with pytest.raises(ModelError, match="whole modules"):
        run(tmp_path, base, tmp_path / "saved")
    config = tmp_path / "plain" / "adapter" / "adapter_config.json"
    for changes, what in (
        ({"peft_type": "IA3"}, "IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"bias": "all"}, "biases"),
        ({"r": 8}, "rank 4"),
        ({"use_dora": True}, "has only A, B of"),
    ):
        before = config.read_text()
        edit(config, **changes)
        with pytest.raises(ModelError, match=what):
            run(tmp_path, base, tmp_path / "plain")
        config.write_text(before)
    with pytest.raises(ModelError, match="no LoRA adapter"):
        run(tmp_path, base, base)


def test_adapter_of_another_base_is_refused(tmp_path: Path, bases: Bases) -> None:
    """PEFT only warns, and the merge would silently be the base."""
    train(bases("e2b"), tmp_path / "train")
    with pytest.raises(ModelError, match=r"match no tensor|do not fit"):
        run(tmp_path, bases("dense31"), tmp_path / "train")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "train" / "adapter" / "adapter_model.safetensors"
    save_file({name.replace(".layers.", ".blocks."): tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="match no tensor"):
        run(tmp_path, bases("e2b"), tmp_path / "train")


def test_broken_bases_are_named(tmp_path: Path, bases: Bases) -> None:
    train(bases("multimodal"), tmp_path / "train")

    def attempt(damage: Callable[[Path], None], what: str) -> None:
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        damage(shutil.copytree(bases("multimodal"), tmp_path / "base"))
        with pytest.raises(OpsError, match=what) as caught:
            run(tmp_path, tmp_path / "base", tmp_path / "train")
        assert isinstance(caught.value, ModelError)
        assert not (tmp_path / "merge.partial" / "report.json").exists()

    second = "model-00002-of-00005.safetensors"

    def cut(base: Path) -> None:
        (base / second).write_bytes((base / second).read_bytes()[:-100])

    def drop_from_shard(base: Path) -> None:
        index = json.loads((base / INDEX).read_text())
        index["weight_map"]["model.language_model.layers.0.self_attn.extra.weight"] = second
        (base / INDEX).write_text(json.dumps(index))

    attempt(lambda base: (base / second).unlink(), second)
    attempt(cut, second)
    attempt(drop_from_shard, "stand in no shard")
    attempt(lambda base: edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes"}), "quantized")
    attempt(lambda base: (base / "tokenizer.json").unlink(), "tokenizer.json")


def test_no_room_is_said_before_writing(tmp_path: Path, bases: Bases) -> None:

    with pytest.raises(MachineError, match="GB free"):
        check_room(tmp_path, 1 << 60)
