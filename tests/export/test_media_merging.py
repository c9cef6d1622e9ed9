"""Merging an adapter that was trained on what rows show: towers are folded in, and the canary sees and hears."""

from __future__ import annotations

import json

import pytest
import torch

from gemma_ops.config import DataConfig, LoraConfig, MachineConfig, MergeConfig
from gemma_ops.data import chat, published
from gemma_ops.data.parts import media_of
from gemma_ops.errors import GateError
from gemma_ops.export import merge, merge_check
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.prompts import fidelity_prompts
from gemma_ops.family.media import Senses
from gemma_ops.modeling import adapters
from gemma_ops.modeling.load import load_model
from gemma_ops.modeling.media_inputs import Perceiver, join_media
from gemma_ops.prepare import prepare
from tests.helpers import media_rows, tiny_media

CPU = MachineConfig(device="cpu", mlflow=None)


@pytest.fixture(scope="module", params=["edge", "large", "unified"])
def made(request, tmp_path_factory):
    """A base, prepared rows about images, and an adapter on the towers alone with the model it was made on."""
    root = tmp_path_factory.mktemp(request.param)
    base = tiny_media.save(request.param, root / "base")
    media_rows.write(root / "source", "image", 6, seed=1)
    (root / "data").mkdir()
    source = root / "source/rows.jsonl"
    prepare(
        root / "data",
        DataConfig(path=str(source), valid_share=0.5, near_duplicates=None),
        CPU,
        source=source,
        model=base,
    )
    model = adapters.attach(load_model(base, towers=True), LoraConfig(rank=2, towers=True), 0, shown=("image",)).eval()
    random = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            seen = "vision" in name
            parameter.data.normal_(0, 0.3, generator=random) if seen else parameter.data.zero_()
    adapters.save_adapter(model, root / "train/adapter", "base", None)
    return root, base, model


def logits(model, base, data):
    """Of the first validation row, at every position."""
    row = json.loads((data / "valid.jsonl").read_text().splitlines()[0])
    perceiver = Perceiver(base)
    tokenizer = chat.load_tokenizer(base)
    asked = chat.encode_chat(tokenizer, row["messages"], senses=perceiver.senses, template=published.template_of(base))
    seen = perceiver.see(media_of(row["messages"]), data, asked.types())
    given = {
        "input_ids": torch.tensor([asked.ids]),
        "mm_token_type_ids": torch.tensor([seen.types]),
        **join_media([seen]),
    }
    with torch.no_grad():
        return model(**given, use_cache=False).logits.float()


def merged(root, base, out, **given):
    out.mkdir()
    return merge(out, MergeConfig(canary_prompts=2), CPU, base=base, adapter=root / "train", **given)


def test_an_adapter_on_towers_is_merged_into_the_same_logits(made, tmp_path):
    root, base, _ = made
    found = merged(root, base, tmp_path / "merge", data=root / "data")
    before, after = MergedCheckpoint(base), MergedCheckpoint(tmp_path / "merge/model")
    assert list(before.entries) == list(after.entries)
    changed = {name for name in before.entries if not torch.equal(before.read(name), after.read(name))}
    assert changed
    assert all("vision" in name for name in changed)
    assert found["canary/max_logit_change"] > 0.05, "the canary sees what only the towers changed"
    assert found["canary/max_adapter_gap"] < found["canary/max_logit_change"] / 3
    # In fp32 rounding is out of the way: the merged checkpoint is the base with its adapter.
    again = load_model(tmp_path / "merge/model", weights="fp32", towers=True)
    wanted = logits(
        adapters.load_adapter(load_model(base, weights="fp32", towers=True), root / "train/adapter"),
        base,
        root / "data",
    )
    plain = logits(load_model(base, weights="fp32", towers=True), base, root / "data")
    gap = (logits(again, base, root / "data") - wanted).abs().max()
    assert gap < 0.1 * (wanted - plain).abs().max(), "what is left is the rounding of merged weights to bf16"
    report = json.loads((tmp_path / "merge/report.json").read_text())
    assert report["canary"]["answers"]


def test_towers_that_changed_nothing_are_refused_where_rows_show_what_they_see(made):
    """A merge that left the base as it was, of an adapter on towers alone. Prompts of text could not tell."""
    root, base, _ = made
    chosen = fidelity_prompts(root / "data", 2)
    given = {"data": root / "data", "towers": (True, True)}
    if Senses.read(base).kinds == ("image",):
        with pytest.raises(GateError, match="exactly as the base does"):
            merge_check.check_merge(base, base, root / "train/adapter", chosen, CPU, **given)
    else:
        found = merge_check.check_merge(base, base, root / "train/adapter", chosen, CPU, **given)
        assert found.max_logit_change == 0
        assert found.max_adapter_gap > 0.05, "the report tells that the adapter is not in it"
