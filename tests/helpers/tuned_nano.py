"""nano tuned in a second, for tests that serve it: an adapter whose numbers were drawn, and the checkpoint it makes."""

from __future__ import annotations

from gemma_ops.config import LoraConfig, MachineConfig, MergeConfig
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.export import merge
from gemma_ops.modeling import adapters, load
from gemma_ops.nano import WEIGHTS

CPU = MachineConfig(device="cpu")


def make_adapter(out):
    """out/adapter, as `train` leaves it: strong enough that most answers are others than the base's."""
    import torch

    tuned = adapters.attach(load.load_model(WEIGHTS), LoraConfig(rank=4, alpha=8), 3)
    random = torch.Generator().manual_seed(3)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=random)
    adapters.save_adapter(tuned, out / "adapter", "nano", None)
    write_prompting(out / "adapter", Prompting.of("off", (WEIGHTS / "chat_template.jinja").read_text()))
    return out / "adapter"


def make_merged(out, trained):
    """out/model, as `merge` leaves it, of the adapter in `trained`."""
    out.mkdir(exist_ok=True)
    merge(out, MergeConfig(canary_prompts=1), CPU, base=WEIGHTS, adapter=trained)
    return out / "model"
