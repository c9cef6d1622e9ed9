"""A drafter over recorded rows says what transformers' own drafter says, for every kind of Gemma 4, and drafts are
counted as an engine counts them."""

from __future__ import annotations

import json

import pytest
import torch

from gemma_ops.drafting.drafter_unroll import DraftBatch, TargetTable, drafts_right, engine_steps, unroll_drafter
from gemma_ops.drafting.recorded_states import RecordedStates, record_states
from gemma_ops.errors import ModelError
from gemma_ops.family import CONFIGS
from gemma_ops.modeling.drafter_files import check_drafter, load_drafter, read_drafter_config
from gemma_ops.modeling.load import load_model
from tests.helpers import tiny_drafters, tiny_models

PROMPTS = [[2, 105, 200, 9, 11], [2, 7, 8], [2, 300, 301, 302, 303, 304, 305]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A function from a kind of tiny model to its folder, the model, its recorded rows and a drafter."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            target = tiny_models.save(kind, folder / "model")
            clusters = 32 if kind == "e2b" else 0
            drafter = load_drafter(tiny_drafters.save_tiny_drafter(target, folder / "drafter", clusters=clusters))
            model = load_model(target, weights="fp32")
            rows = record_states(model, PROMPTS, folder / "states", answer_tokens=6, batch=2)
            made[kind] = target, model, rows, drafter
        return made[kind]

    return make


def table_of(model):
    return TargetTable(model.get_input_embeddings().weight.detach(), 30.0)


@pytest.mark.parametrize("kind", ["e2b", "moe", "dense31", "unified"])
def test_it_says_what_transformers_own_drafter_says(recorded, kind):
    _, model, rows, drafter = recorded(kind)
    batch = DraftBatch.of([rows[number] for number in range(len(rows))], "cpu", torch.float32)
    states = list(unroll_drafter(drafter, table_of(model), batch, 3))
    for number in range(len(rows)):
        row = rows[number]
        place = row.asked + 1
        shared = {
            kind: (keys[None, :, :place].float(), values[None, :, :place].float())
            for kind, (keys, values) in row.shared.items()
        }
        state = row.hidden[place - 1].float()[None, None]
        for ahead in range(3):
            embedded = model.get_input_embeddings()(row.ids[place + ahead][None, None])
            with torch.no_grad():
                said = drafter(
                    inputs_embeds=torch.cat([embedded, state], -1), shared_kv_states=shared,
                    position_ids=torch.tensor([[place]]), attention_mask=torch.ones(1, place),
                )  # fmt: skip
                ours = drafter.post_projection(states[ahead][number, 1])
            state = said.last_hidden_state
            torch.testing.assert_close(ours, state[0, 0], atol=1e-4, rtol=1e-4)


def test_what_is_recorded_is_what_the_target_computes(recorded):
    _, model, rows, _ = recorded("e2b")
    row = rows[0]
    with torch.no_grad():
        logits = model(input_ids=row.ids[None], use_cache=False).logits[0]
    assert logits[row.asked - 1 : -1].argmax(-1).tolist() == row.ids[row.asked :].tolist()
    head = row.hidden.float() @ table_of(model).weight.T
    torch.testing.assert_close(30 * torch.tanh(head / 30), logits, atol=0.2, rtol=0.05)


def test_a_recording_goes_on_where_it_was_with_the_same_bytes(recorded, tmp_path):
    _, model, _, _ = recorded("e2b")
    record_states(model, PROMPTS, tmp_path / "whole", answer_tokens=6, batch=2)
    killed = tmp_path / "killed"
    killed.mkdir()
    files = sorted((tmp_path / "whole").iterdir())
    (killed / files[0].name).write_bytes(files[0].read_bytes())
    (killed / "000001.tmp").write_bytes(b"half of it")
    record_states(model, PROMPTS, killed, answer_tokens=6, batch=2)
    for file in files:
        assert (killed / file.name).read_bytes() == file.read_bytes()
    assert len(RecordedStates(killed)) == len(PROMPTS)


def test_sliding_layers_read_their_window_only(recorded):
    _, _, rows, _ = recorded("e2b")
    batch = DraftBatch.of([rows[0]], "cpu", torch.float32)
    masks = batch.masks(4)
    place = int(batch.places[0, 2])
    assert masks["full_attention"][0, 0, 2].nonzero().flatten().tolist() == list(range(place))
    assert masks["sliding_attention"][0, 0, 2].nonzero().flatten().tolist() == list(range(place - 3, place))


def test_drafts_are_right_as_far_as_all_before_them_are(recorded, monkeypatch):
    _, model, rows, drafter = recorded("e2b")
    batch = DraftBatch.of([rows[0]], "cpu", torch.float32)
    answer = rows[0].ids[rows[0].asked :].tolist()
    one_hot = torch.eye(drafter.vocab_size)

    def said(_drafter, _table, batch, depth):
        for ahead in range(1, depth + 1):
            right = one_hot[batch.at(batch.ids, ahead)]
            yield right if ahead != 2 else torch.roll(right, 1, -1)

    monkeypatch.setattr("gemma_ops.drafting.drafter_unroll.unroll_drafter", said)
    monkeypatch.setattr(drafter, "lm_head", torch.nn.Identity())
    found = drafts_right(drafter, table_of(model), batch, 3, clusters=False)
    assert found[0].tolist() == [1] * (len(answer) - 1)


@pytest.mark.parametrize(
    ("right", "steps", "accepted"),
    [([0, 0, 0], 3, 0), ([4, 3, 2, 1, 0], 1, 4), ([2, 9, 9, 0, 1, 9], 3, 3), ([], 0, 0)],
)
def test_steps_are_those_of_an_engine(right, steps, accepted):
    assert engine_steps(right) == (steps, accepted)


@pytest.mark.parametrize("size", CONFIGS)
def test_a_drafter_of_a_published_size_fits_that_size_alone(size):
    def told(key):
        return json.loads(tiny_drafters.drafter_config(CONFIGS[key], hidden=256).to_json_string(use_diff=False))

    check_drafter(told(size), CONFIGS[size])
    for other in CONFIGS:
        if other != size:
            with pytest.raises(ModelError, match="another size"):
                check_drafter(told(other), CONFIGS[size])


def test_a_model_is_no_drafter(recorded):
    target, *_ = recorded("e2b")
    with pytest.raises(ModelError, match="no drafter"):
        read_drafter_config(target)
