"""What the card says about loading is tried as it stands."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers

from gemma_ops.config import LoraConfig
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.modeling import adapter_files, adapters, load
from gemma_ops.registry.card_usage import loading
from tests.helpers import registry_runs as runs

NANO = Path(load.__file__).parent.parent / "nano" / "weights"
SUBJECT = {
    "name": "support-nano",
    "base": {"id": "nano", "size": None}, "adapter": {"rank": 4}, "prompting": None,
    "files": {"adapter/adapter_model.safetensors": {}, "tokenizer/tokenizer.json": {}, "quantized/q8_0/model.gguf": {}},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an adapter whose factors are not zero, the tokenizer, and the logits that training saw."""
    root = tmp_path_factory.mktemp("card")
    model = adapters.attach(load.load_model(NANO, weights="fp32"), LoraConfig(rank=4, alpha=8), 7)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapter_files.save_adapter(model, root / "adapter", "nano", None)
    (root / "tokenizer").symlink_to(NANO)
    (root / "path").mkdir()
    (root / "path" / "to").mkdir()
    (root / "path" / "to" / "nano").symlink_to(NANO)
    with torch.no_grad():
        return root, model(input_ids=IDS).logits


IDS = torch.arange(2, 40)[None]


def run_block(text: str, number: int, folder: Path, monkeypatch) -> dict:
    """Run a Python block of the card in `folder`, in fp32 so that logits can be compared."""
    monkeypatch.chdir(folder)
    block = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)[number].replace("bfloat16", "float32")
    block = block.replace("max_new_tokens=256", "max_new_tokens=1")
    names = {"PeftModel": peft.PeftModel, "Gemma4ForCausalLM": transformers.Gemma4ForCausalLM}
    exec(block, names)
    return names


def test_the_lines_on_the_card_give_the_logits_of_the_training(trained, monkeypatch):
    root, wanted = trained
    text = loading(SUBJECT, ["adapter", "q8_0"])
    for number in (0, 1):
        model = run_block(text, number, root, monkeypatch)["model"]
        with torch.no_grad():
            assert torch.equal(model(input_ids=IDS).logits, wanted), number


def test_plain_peft_on_the_text_only_class_loads_nothing_as_the_card_says(trained):
    root, wanted = trained
    mapping = {r"^model\.language_model\.": "model."}
    base = transformers.Gemma4ForCausalLM.from_pretrained(NANO, dtype="float32", key_mapping=mapping)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        untouched = base(input_ids=IDS).logits
        plain = peft.PeftModel.from_pretrained(base, root / "adapter")(input_ids=IDS).logits
    assert torch.equal(plain, untouched)
    assert not torch.allclose(plain, wanted, atol=0.1)


@pytest.mark.parametrize(("mode", "flag", "number"), [("off", "off", 0), ("on", "on", 1), ("mixed", "off", 0)])
def test_the_mode_of_thinking_is_in_every_way_of_asking(mode, flag, number):
    subject = {**SUBJECT, "prompting": {"thinking": mode, "template": "ab" * 32, "template_name": "Google, July"}}
    subject["files"] = {**SUBJECT["files"], "merged/config.json": {}}
    text = loading(subject, ["adapter", "merged", "q8_0"])
    assert f"llama-server -m quantized/q8_0/model.gguf --jinja --reasoning {flag}" in text
    assert f"params.enable_reasoning = {number}" in text
    assert text.count(f"enable_thinking={bool(number)}") == 2, "adapter and merged"
    assert "chat template `abababababab` (Google, July)" in text
    assert 'mlflow.pyfunc.load_model("models:/support-nano@champion")' in text


def test_the_version_carries_and_shows_how_it_was_asked(tmp_path):
    def train(out, settings, machine, *, base, data):
        done = runs.train(out, settings, machine, base=base, data=data)
        write_prompting(out / "adapter", Prompting("on", "ab" * 32, "Google, July"))
        return done

    columns = {"privacy": "any", "format": "columns", "prompt": "Route: {text}", "completion": "{team}"}
    config = runs.config(tmp_path, None, data=columns)
    out = runs.make(config, steps={"train": train})["register"].path
    body = json.loads((out / "manifest.json").read_text())
    assert body["subject"]["prompting"] == {"thinking": "on", "template": "ab" * 32, "template_name": "Google, July"}
    assert "adapter/prompting.json" in body["subject"]["files"]
    page = (out / "card.md").read_text()
    assert "It was trained with thinking on" in page
    assert "Turns were made from columns: user turn `Route: {text}`, answer `{team}`." in page
    from gemma_ops.registry import model_card

    assert model_card.card_tags(body, None)["thinking"] == "on"
