"""The towers in the step `quantize`: the mmproj file, what is compared, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import GateError, ModelError
from gemma_ops.export import projector_fidelity, quantize
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_projector import audit_projector, check_towers, write_projector
from gemma_ops.export.projector_tensors import plan_projector
from gemma_ops.family.media import Senses
from gemma_ops.modeling.llamacpp_shown import image_reading
from tests.helpers import tiny_media, tiny_models

MACHINE = MachineConfig(device="cpu", workers=1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    wide = {"edge": {"hidden_size": 1536}}
    return {
        kind: tiny_media.roughen(tiny_media.save(kind, folder / kind, **wide.get(kind, {})))
        for kind in tiny_media.KINDS
    }


def run(out: Path, base: Path, **settings: Any) -> tuple[dict[str, float], dict[str, Any]]:
    out.mkdir(exist_ok=True)
    metrics = quantize(out, QuantizeConfig(formats=("q8_0",), fidelity_rows=2, **settings), MACHINE, model=base)
    return metrics, json.loads((out / "report.json").read_text())


@pytest.mark.parametrize(
    ("kind", "served"),
    [("edge", ["image", "audio"]), ("large", ["image"]), ("mixture", ["image"]), ("unified", ["audio"])],
)
def test_step_writes_towers_and_says_what_llamacpp_reads_as_transformers_does(
    tmp_path: Path, bases: dict[str, Path], kind: str, served: list[str]
) -> None:
    metrics, report = run(tmp_path / "q", bases[kind], mmproj="bf16")
    found = report["mmproj"]
    assert found["served"] == served
    for media in Senses.read(bases[kind]).kinds:
        assert found[media]["tower_error"] < 0.02
        if media in served:
            # A router on an edge chooses another expert.
            assert metrics[f"mmproj/{media}_kl"] < (0.01 if kind == "mixture" else 0.003)
            assert metrics[f"mmproj/{media}_top1"] > 0.95
        else:
            assert "kl" not in found[media]
    file = tmp_path / "q" / "mmproj" / "mmproj.gguf"
    assert metrics["mmproj/mb"] == file.stat().st_size / 1e6


def planned(base: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    return {one.name: (one.shape, one.type) for one in plan_projector(MergedCheckpoint(base), "bf16").tensors}


@pytest.mark.parametrize("kind", ["edge", "large"])
def test_names_are_those_of_llamacpps_converter(bases: dict[str, Path], kind: str) -> None:
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 2)
    suffixes = (".weight", ".bias", ".input_max", ".input_min", ".output_max", ".output_min")
    expected = set()
    for name in MergedCheckpoint(bases[kind]).entries:
        if "language_model" in name:
            continue
        spelled = name.replace("model.vision_tower.encoder.", "vision_model.model.").replace(".linear.", ".")
        spelled = spelled.replace("model.audio_tower.", "conformer.")
        if spelled.endswith(("per_dim_scale", "position_embedding_table")):
            spelled += ".weight"
        expected.add(known.get_name(spelled, try_suffixes=suffixes))
    assert set(planned(bases[kind])) == expected


def test_matrices_have_the_type_asked_for_and_the_rest_is_exact(tmp_path: Path, bases: dict[str, Path]) -> None:
    source = MergedCheckpoint(bases["edge"])
    for kind, stored in (("bf16", "BF16"), ("f16", "F16"), ("f32", "F32")):
        plan = plan_projector(source, kind)  # type: ignore[arg-type]
        file = write_projector(source, plan, tmp_path / kind)
        found = {one.name: one for one in gguf.GGUFReader(file).tensors}
        assert found["v.blk.0.ffn_up.weight"].tensor_type.name == stored
        exact = ("v.patch_embd.weight", "v.position_embd.weight", "a.conv1d.0.weight", "a.blk.0.conv_dw.weight")
        for name in (*exact, "v.blk.0.ln1.weight", "v.blk.0.ffn_up.input_min"):
            assert found[name].tensor_type.name == "F32", name
        assert set(audit_projector(file, plan)["parameters"]) == {"F32", stored}
    patch = source.read("model.vision_tower.patch_embedder.input_proj.weight").float().numpy()
    kernel = found["v.patch_embd.weight"].data
    assert np.array_equal(kernel[5].transpose(1, 2, 0).ravel(), patch[5])  # (3, side, side) from (side, side, 3)


def test_same_checkpoint_gives_the_same_bytes(tmp_path: Path, bases: dict[str, Path]) -> None:
    source = MergedCheckpoint(bases["unified"])
    files = [write_projector(source, plan_projector(source, "bf16"), tmp_path / name / "mmproj") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_auto_writes_towers_where_rows_show_something(tmp_path: Path, bases: dict[str, Path]) -> None:
    source, plain = MergedCheckpoint(bases["large"]), tiny_models.save("dense31", tmp_path / "text")
    (tmp_path / "data" / "media").mkdir(parents=True)
    (tmp_path / "words").mkdir()
    chosen = projector_fidelity.projector_type
    assert chosen(QuantizeConfig(), source, tmp_path / "data") == "bf16"
    assert chosen(QuantizeConfig(), source, tmp_path / "words") is None
    assert chosen(QuantizeConfig(), source, None) is None
    assert chosen(QuantizeConfig(), MergedCheckpoint(plain), tmp_path / "data") is None
    assert chosen(QuantizeConfig(formats=()), source, tmp_path / "data") is None
    assert chosen(QuantizeConfig(mmproj="none"), source, tmp_path / "data") is None
    assert chosen(QuantizeConfig(mmproj="f16"), source, None) == "f16"
    with pytest.raises(ModelError, match="has no vision or audio tower"):
        chosen(QuantizeConfig(mmproj="f16"), MergedCheckpoint(plain), None)


@pytest.mark.parametrize(("kind", "section", "key", "value"), [
    ("edge", "audio_config", "conv_kernel_size", 3), ("edge", "audio_config", "attention_context_left", 25),
    ("large", "vision_config", "hidden_activation", "silu"), ("large", "vision_config", "num_key_value_heads", 1),
    ("unified", "audio_config", "audio_embed_dim", 320),
])  # fmt: skip
def test_what_llamacpp_takes_for_granted_must_hold(
    bases: dict[str, Path], kind: str, section: str, key: str, value: Any
) -> None:
    source = MergedCheckpoint(bases[kind])
    check_towers(source)
    source.config[section] = source.config[section] | {key: value}
    with pytest.raises(ModelError, match=f"{section}.{key}"):
        check_towers(source)


def test_reading_of_images_by_size() -> None:
    def of(width: int, *, sees: str | None, unified: bool = False) -> str:
        text = {"hidden_size": width, "use_bidirectional_attention": sees}
        return image_reading({"model_type": "gemma4_unified" if unified else "gemma4", "text_config": text})

    assert [of(width, sees=None) for width in (1536, 2560)] == ["as trained"] * 2  # E2B, E4B
    assert [of(width, sees="vision") for width in (2816, 5376)] == ["as trained"] * 2  # 26B-A4B, 31B
    assert of(3840, sees="vision", unified=True) == "otherwise"  # 12B
    assert of(128, sees=None) == "token by token"
    assert of(1536, sees="vision") == "otherwise"


def test_a_tensor_without_a_place_is_refused(bases: dict[str, Path]) -> None:
    source = MergedCheckpoint(bases["large"])
    source.entries["model.vision_tower.encoder.layers.0.gamma.weight"] = next(iter(source.entries.values()))
    with pytest.raises(ModelError, match=r"no place for vision_tower.encoder.layers.0.gamma.weight"):
        plan_projector(source, "bf16")


def test_towers_of_another_checkpoint_do_not_pass(tmp_path: Path, bases: dict[str, Path]) -> None:
    other = MergedCheckpoint(tiny_media.roughen(tiny_media.save("large", tmp_path / "other", seed=9), seed=9))
    (tmp_path / "q").mkdir()
    write_projector(other, plan_projector(other, "bf16"), tmp_path / "q" / "mmproj")
    with pytest.raises(GateError, match="disagree about the same image"):
        run(tmp_path / "q", bases["large"], mmproj="bf16")


def test_a_file_that_is_cut_short_or_of_another_type_does_not_pass(tmp_path: Path, bases: dict[str, Path]) -> None:
    source = MergedCheckpoint(bases["large"])
    plan = plan_projector(source, "bf16")
    file = write_projector(source, plan, tmp_path / "mmproj")
    with pytest.raises(GateError, match="differs from what was asked"):
        audit_projector(file, plan_projector(source, "f16"))
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(GateError, match="cut short"):
        audit_projector(file, plan)
