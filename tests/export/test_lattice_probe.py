"""Weights that were trained on the Q4_0 lattice keep the scales that they were trained with."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.lattice_probe import is_near_lattice, lattice_error
from gemma_ops.export.quantizing import write_formats
from gemma_ops.ggml.encoding import encode_rows
from tests.helpers import tiny_models


def trained_on_the_lattice(folder: Path, *, moved: float) -> Path:
    """nano with its 4-bit matrices on the Q4_0 lattice, then moved by a low-rank update of this share."""
    shutil.copytree(tiny_models.NANO, folder)
    plan = plan_tensors(MergedCheckpoint(folder), "q4_0")
    chosen = {each.source.name for each in plan.tensors if each.source and each.type == "Q4_0"}
    draw = torch.Generator().manual_seed(0)
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        for name in chosen & weights.keys():
            lies = encode_rows(weights[name].float(), "Q4_0").decode()
            update = torch.randn(len(lies), 4, generator=draw) @ torch.randn(4, lies.shape[1], generator=draw)
            lies += moved * lies.square().mean().sqrt() * update / update.square().mean().sqrt()
            weights[name] = lies.bfloat16()
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def write(model: Path, out: Path) -> dict[str, torch.Tensor]:
    """The matrices of the q4_0 file that the step writes, decoded."""
    source = MergedCheckpoint(model)
    out.mkdir()
    write_formats(out, source, ["bf16", "q4_0"], 1, {"bf16": "any", "q4_0": "any"})
    reader = gguf.GGUFReader(out / "q4_0" / "model.gguf")
    return {
        each.name: torch.from_numpy(gguf.quants.dequantize(each.data, each.tensor_type).copy())
        for each in reader.tensors
        if each.tensor_type.name == "Q4_0"
    }


def error(model: Path, found: dict[str, torch.Tensor]) -> float:
    source, left, total = MergedCheckpoint(model), 0.0, 0.0
    for each in plan_tensors(source, "q4_0").tensors:
        if each.name in found and each.source:
            weight = source.read(each.source.name).float()
            left += float((weight - found[each.name].view_as(weight)).square().sum())
            total += float(weight.square().sum())
    return (left / total) ** 0.5


@pytest.mark.parametrize(("moved", "at_most"), [(0.0, 0.003), (0.02, 0.022)])
def test_a_file_of_weights_from_the_lattice_keeps_their_scales(tmp_path, moved, at_most):
    model = trained_on_the_lattice(tmp_path / "model", moved=moved)
    assert is_near_lattice(lattice_error(MergedCheckpoint(model), plan_tensors(MergedCheckpoint(model), "bf16")))
    assert error(model, write(model, tmp_path / "out")) < at_most


def test_other_weights_are_rounded_as_llamacpp_does(tmp_path):
    source = MergedCheckpoint(tiny_models.NANO)
    assert not is_near_lattice(lattice_error(source, plan_tensors(source, "bf16")))
    found = write(tiny_models.NANO, tmp_path / "out")
    for each in plan_tensors(source, "q4_0").tensors:
        if each.name in found and each.source:
            rows = source.read(each.source.name).float().numpy()
            code = gguf.GGMLQuantizationType.Q4_0
            wanted = gguf.quants.dequantize(gguf.quants.quantize(rows, code), code)
            assert torch.equal(found[each.name].view(wanted.shape), torch.from_numpy(wanted)), each.name
