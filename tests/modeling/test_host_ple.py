"""A per-layer table in main memory: the same loss and gradients bit for bit, the same keys, and nothing moves it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_ops.config import LoraConfig
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.modeling import adapters, host_ple, shards
from gemma_ops.modeling.host_ple import HostEmbedding, _Fetched
from gemma_ops.modeling.load import load_model
from tests.helpers.checkpoints import IDS, gradients, logits, tiny

PLE_KINDS = ["e2b", "multimodal"]


def _step(kind, ple, weights):
    model = adapters.attach(load_model(tiny(kind), weights=weights, ple=ple), LoraConfig(rank=4), seed=3).train()
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("weights", ["bf16", "fp32", "nf4"])
@pytest.mark.parametrize("kind", PLE_KINDS)
def test_host_table_equals_device_table_bit_for_bit(kind, weights):
    (host, ours), (device, theirs) = _step(kind, "host", weights), _step(kind, "device", weights)
    assert torch.equal(host, device)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", PLE_KINDS)
def test_keys_and_values_of_the_state_are_those_of_the_original(kind):
    host, device = (load_model(tiny(kind), ple=place, towers=True).state_dict() for place in ("host", "device"))
    assert list(host) == list(device)
    assert all(torch.equal(host[name], device[name]) for name in device)
    model = load_model(tiny(kind), ple="host", towers=True)
    changed = {name: tensor * 0 if "per_layer.weight" in name else tensor for name, tensor in device.items()}
    model.load_state_dict(changed)
    assert not model.get_submodule("model.language_model.embed_tokens_per_layer").weight.any()
    changed.pop("model.language_model.embed_tokens_per_layer.weight")
    with pytest.raises(RuntimeError, match="embed_tokens_per_layer"):
        model.load_state_dict(changed)


def test_the_table_is_nobodys_parameter_and_nothing_moves_or_casts_it():
    model = load_model(tiny("e2b"), ple="host")
    table = host_ple.find_ple(model).weight
    assert not any("per_layer.weight" in name for name, _ in model.named_parameters())
    model.to(torch.float32).half().to("meta")
    assert host_ple.find_ple(model).weight is table
    assert table.dtype == torch.bfloat16
    assert table.device.type == "cpu"


def test_the_table_is_mapped_from_the_file_and_read_where_it_cannot_be(tmp_path):
    file = tmp_path / "x.safetensors"
    table = torch.arange(64, dtype=torch.float32).view(8, 8).to(torch.bfloat16)
    save_file({"table": table}, file)
    entry = shards.read_headers([file])["table"]
    found = shards.mapped(entry)
    assert torch.equal(found, table)
    assert found.untyped_storage().nbytes() >= entry.stop, "the storage is the whole file's"
    odd = b" " + file.read_bytes()[8:]  # one more byte of header: the data begins at an odd place
    length = int.from_bytes(file.read_bytes()[:8], "little") + 1
    header, data = odd[1:length], odd[length:]
    file.write_bytes(length.to_bytes(8, "little") + header + b" " + data)
    entry = shards.read_headers([file])["table"]
    assert entry.start % 2
    assert shards.mapped(entry) is None
    assert torch.equal(shards.read_tensors(entry), table)


def test_auto_is_the_device_on_a_cpu_and_a_model_without_a_table_has_no_host():
    assert host_ple.find_ple(load_model(tiny("e2b"))) is None
    assert host_ple.find_ple(load_model(tiny("moe"), ple="host")) is None


def test_peft_puts_nothing_on_the_table():
    model = load_model(tiny("e2b"), ple="host")
    with pytest.raises(ConfigError, match=r"must not be adapted|matches no module"):
        adapters.attach(model, LoraConfig(targets=r".*embed_tokens_per_layer"), seed=0)


def _table():
    table = torch.randn(50, 8).to(torch.bfloat16)
    return HostEmbedding(table, scale=4.0, dtype=torch.bfloat16, padding=0, placeholders=(7,)).train()


def test_prefetched_rows_are_taken_once_in_their_order_and_only_in_training():
    """The device's half of `prefetch`, played on the CPU: rows of a marked table show which ones were used."""
    host, ids = _table(), torch.tensor([[1, 2, 3]])
    right = host(ids)
    marked = torch.ones(3, 8, dtype=torch.bfloat16)
    host._fetched.append(_Fetched(marked, ids, None))
    assert torch.equal(host.eval()(ids), right)
    assert torch.equal(host.train()(ids), 4 * marked[None])
    assert torch.equal(host(ids), right)
    host.check()
    assert not host._fetched
    host._fetched.append(_Fetched(marked, ids[:, :2], None))
    assert torch.equal(host(ids), right), "rows for another shape are let go"
    assert not host._fetched


def test_prefetched_rows_of_other_tokens_are_found_out():
    host = _table()
    host._fetched.append(_Fetched(torch.ones(3, 8, dtype=torch.bfloat16), torch.tensor([[1, 2, 4]]), None))
    host(torch.tensor([[1, 2, 3]]))
    with pytest.raises(ModelError, match="other tokens"):
        host.check()


def test_rows_of_an_epoch_that_was_left_are_forgotten():
    host, ids = _table(), torch.tensor([[1, 2, 3]])
    right = host(ids)
    host._fetched.append(_Fetched(torch.ones(3, 8, dtype=torch.bfloat16), torch.tensor([[1, 2, 4]]), None))
    host.forget()
    assert torch.equal(host(ids), right)
    host.check()


def test_buffers_made_while_answering_serve_a_training(monkeypatch):
    """Samples may have longer prompts than any pass before: their buffers are filled again by the next training
    step."""
    empty = torch.empty

    def unpinned(*size, pin_memory, **more):
        assert pin_memory
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", unpinned)
    host = _table()
    with torch.inference_mode():
        buffer = host._buffer(2)
    assert torch.equal(torch.index_select(host.table, 0, torch.tensor([3, 1]), out=buffer), host.table[[3, 1]])


def test_prefetching_for_a_cpu_does_nothing():
    host = _table()
    host.prefetch(torch.tensor([[1, 2, 3]]), "cpu")
    assert not host._fetched


def test_images_and_sounds_look_up_the_padding_row_as_in_the_original():
    """`prefetch` sees the collator's ids, where the model later has padding in place of an image."""
    model = load_model(tiny("multimodal"), ple="host", towers=True)
    host = host_ple.find_ple(model)
    config = model.config
    assert set(host.placeholders) == {config.image_token_id, config.video_token_id, config.audio_token_id}
    assert host.padding_idx == config.text_config.pad_token_id
    seen = []
    host.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ids = IDS.clone()
    ids[0, 3] = config.image_token_id
    logits(model, ids)
    assert int(seen[0][0, 3]) == host.padding_idx


def test_the_whole_file_of_a_fp32_load_stays_bf16_on_the_host(tmp_path):
    model = load_model(tiny("e2b"), weights="fp32", ple="host")
    host = host_ple.find_ple(model)
    assert (
        host.weight.dtype
        == load_file(tiny("e2b") / "model.safetensors")["model.language_model.embed_tokens_per_layer.weight"].dtype
    )
    assert host(IDS).dtype == torch.float32
