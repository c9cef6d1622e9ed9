"""The first loss of a fine-tune is the base's own loss on those tokens, for every size's twin, through the whole
training.

A layer that a loader initialised anew, a part of the template that got lost, an adapter that does not start at zero or
a loss averaged otherwise would each show here.
"""

from __future__ import annotations

import pytest
import torch
import transformers

from gemma_ops.config import TrainConfig
from gemma_ops.training import sft, train
from tests.helpers import tiny_models
from tests.helpers.checkpoints import KINDS, tiny
from tests.helpers.training_sites import site_of
from tests.modeling.test_full import fetched, prepared
from tests.training.test_sft import MACHINE, STEADY, losses


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("rows") / "data")


def base_loss(folder, data, work, settings):
    """transformers' own whole model in float32, row by row: the mean over scored tokens."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32).eval()
    found = sft.SupervisedCourse("lora").rows(data, settings, site_of(folder, work))
    total = count = 0.0
    for row in found.train:
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        scored = labels[0, 1:] != -100
        total += float(torch.nn.functional.cross_entropy(logits[scored], labels[0, 1:][scored], reduction="sum"))
        count += int(scored.sum())
    return total / count


def e4b(folder):
    """As E4B beside E2B: more key heads, and MLPs of one width in all layers."""
    return tiny_models.save("multimodal", folder, num_key_value_heads=2, use_double_wide_mlp=False)


CASES = [
    *((kind, {}) for kind in (*KINDS, "e4b")),
    ("multimodal", {"tune": "full"}),
    ("moe", {"lora": {"experts": True}}),
    ("multimodal", {"lora": {"init": "pissa"}}),
    ("unified", {"lora": {"dora": True}}),
]


@pytest.mark.parametrize("kind, changes", CASES, ids=str)
def test_the_first_loss_of_a_fine_tune_is_the_base_models(kind, changes, tmp_path, data):
    folder = e4b(tmp_path / "made") if kind == "e4b" else tiny(kind)
    base, out = fetched(kind, tmp_path / "base", folder), tmp_path / "out"
    out.mkdir()
    settings = TrainConfig(**STEADY | {"max_steps": 1, "batch": 6, "micro_batch": 6} | changes)
    train(out, settings, MACHINE, base=base, data=data)
    assert losses(out)[0] == pytest.approx(base_loss(folder, data, tmp_path / "rows", settings), rel=2e-5)


def test_a_layer_that_starts_anew_would_show(tmp_path, data, monkeypatch):
    """The counter-test: one matrix of one layer is random instead of the file's."""
    load = sft.load_model

    def wrong(*arguments, **options):
        model = load(*arguments, **options)
        weight = model.get_parameter("model.language_model.layers.1.mlp.down_proj.weight")
        weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std())
        return model

    monkeypatch.setattr(sft, "load_model", wrong)
    base, out = fetched("e2b", tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    settings = TrainConfig(**STEADY | {"max_steps": 1, "batch": 6, "micro_batch": 6})
    train(out, settings, MACHINE, base=base, data=data)
    right = base_loss(tiny("e2b"), data, tmp_path / "rows", settings)
    assert abs(losses(out)[0] - right) > 1e-3
