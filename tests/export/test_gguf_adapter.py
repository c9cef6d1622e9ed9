"""Adapters as GGUF files: what llama.cpp computes with them is what PEFT does, and what it would ignore is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from gemma_ops.config import MachineConfig, MergeConfig
from gemma_ops.errors import GateError, ModelError
from gemma_ops.export import adapter_check, gguf_adapter, merge
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_adapter import write_adapter
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.modeling.llamacpp_library import GgufLogits
from gemma_ops.privacy.classes import record_learned
from tests.helpers import tiny_models

MACHINE = MachineConfig(device="cpu", workers=1)
IDS = [2, *np.random.default_rng(0).integers(400, 2000, 40).tolist()]
STANDARD = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Bases = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """A base checkpoint of each kind with its bf16 file, made once."""
    made: dict[str, Path] = {}

    def base(kind: Any) -> Path:
        if kind not in made:
            made[kind] = tiny_models.save(kind, tmp_path_factory.mktemp(kind) / "base")
            source = MergedCheckpoint(made[kind])
            write_gguf(source, plan_tensors(source, "bf16"), made[kind].parent / "model.gguf", threads=1)
        return made[kind]

    return base


def train(base: Path, out: Path, *, zero: bool = False, **options: Any) -> np.ndarray:
    """Write an adapter with random factors to `out/adapter`; return PEFT's log-probabilities on `IDS`."""
    import transformers
    from peft import LoraConfig, get_peft_model

    model = transformers.Gemma4ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    tuned: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **options)).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name and not (zero and "lora_B" in name):
                parameter.normal_(0, 0.08, generator=random)
    tuned.save_pretrained(out / "adapter")
    with torch.inference_mode():
        return np.asarray(tuned(input_ids=torch.tensor([IDS])).logits[0].double().log_softmax(-1))


def modules(*names: str) -> dict[str, Any]:
    return {"target_modules": rf".*language_model.*\.({'|'.join(names)})"}


def median_kl(expected: np.ndarray, found: np.ndarray) -> float:
    ours = torch.from_numpy(found).double().log_softmax(-1).numpy()
    return float(np.median((np.exp(expected) * (expected - ours)).sum(-1)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("e2b", modules(*STANDARD)),
        ("e2b", modules(*STANDARD) | {"use_rslora": True, "rank_pattern": {"q_proj": 8}}),
        ("e2b", modules("per_layer_input_gate", "per_layer_projection")),
        ("dense31", modules(*STANDARD)),
        ("moe", modules(*STANDARD)),
        ("moe", modules(r"router\.proj", "o_proj")),
        ("moe", {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ],
)
def test_llamacpp_computes_what_peft_does(tmp_path: Path, bases: Bases, kind: str, options: dict[str, Any]) -> None:
    base = bases(kind)
    expected = train(base, tmp_path, **options)
    file = write_adapter(tmp_path / "adapter", MergedCheckpoint(base), tmp_path / "adapter.gguf")
    with GgufLogits(base.parent / "model.gguf", context=64) as model:
        without = np.concatenate(list(model.read_logits(IDS)))
        model.put_on(file)
        found = np.concatenate(list(model.read_logits(IDS)))
    assert median_kl(expected, found) < 5e-4
    assert median_kl(expected, without) > 0.1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("e2b", modules("q_proj", "per_layer_model_projection")),
        ("e2b", modules("q_proj") | {"use_dora": True}),
        ("multimodal", {"target_modules": r".*vision_tower.*q_proj\.linear"}),
    ],
)
def test_what_llamacpp_would_ignore_is_refused(
    tmp_path: Path, bases: Bases, kind: str, options: dict[str, Any]
) -> None:
    train(bases(kind), tmp_path, **options)
    with pytest.raises(ModelError, match=r"llama\.cpp would ignore \d+ of the adapter's \d+ updates"):
        write_adapter(tmp_path / "adapter", MergedCheckpoint(bases(kind)), tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


def test_llamacpp_does_ignore_the_shared_projection(
    tmp_path: Path, bases: Bases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason for the refusal: should this fail, a newer llama.cpp computes it."""
    base = bases("e2b")
    expected = train(base, tmp_path, **modules("per_layer_model_projection"))
    monkeypatch.setattr(gguf_adapter, "COMPUTED", {"per_layer_model_proj.weight"})
    file = write_adapter(tmp_path / "adapter", MergedCheckpoint(base), tmp_path / "adapter.gguf")
    with GgufLogits(base.parent / "model.gguf", context=64) as model:
        model.put_on(file)
        assert median_kl(expected, np.concatenate(list(model.read_logits(IDS)))) > 0.05


def test_step_merge_writes_the_file_and_compares_it(tmp_path: Path, bases: Bases) -> None:
    train(bases("e2b"), tmp_path, **modules(*STANDARD))
    (tmp_path / "out").mkdir()
    record_learned(tmp_path, "local_only", ["rows: local_only"])
    settings = MergeConfig(gguf_adapter=True)
    metrics = merge(tmp_path / "out", settings, MACHINE, base=bases("e2b"), adapter=tmp_path)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert metrics["adapter/kl"] < 0.003
    assert metrics["adapter/base_kl"] > 0.1
    assert report["adapter"]["peft"]["conversations"] == settings.canary_prompts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter.gguf", "learned.json", "model", "report.json",
    ]  # fmt: skip
    fields = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").fields
    assert fields["general.type"].contents() == "adapter"
    assert fields["gemma_ops.learned"].contents() == "local_only"


def test_a_file_that_does_nothing_or_something_else_does_not_pass(tmp_path: Path, bases: Bases) -> None:
    source = MergedCheckpoint(bases("e2b"))
    train(bases("e2b"), tmp_path / "mine", **modules(*STANDARD))
    train(bases("e2b"), tmp_path / "idle", zero=True, **modules(*STANDARD))
    for name in ("mine", "idle"):
        write_adapter(tmp_path / name / "adapter", source, tmp_path / f"{name}.gguf")
    given: dict[str, Any] = {"prompts": [IDS], "machine": MACHINE, "scratch": tmp_path / "base.gguf"}
    adapter_check.check_adapter(tmp_path / "mine.gguf", tmp_path / "mine" / "adapter", source, **given)
    with pytest.raises(GateError, match="disagrees with the adapter"):
        adapter_check.check_adapter(tmp_path / "idle.gguf", tmp_path / "mine" / "adapter", source, **given)
    assert not (tmp_path / "base.gguf").exists()


def test_a_file_of_another_base_is_refused(tmp_path: Path, bases: Bases) -> None:
    train(bases("dense31"), tmp_path, **modules(*STANDARD))
    file = write_adapter(tmp_path / "adapter", MergedCheckpoint(bases("dense31")), tmp_path / "adapter.gguf")
    with (
        GgufLogits(bases("e2b").parent / "model.gguf", context=64) as model,
        pytest.raises(ModelError, match=r"llama\.cpp can't put"),
    ):
        model.put_on(file)
