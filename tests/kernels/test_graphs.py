"""Passes that are recorded and replayed compute what they did; the graphs themselves need a GPU, all around them
doesn't."""

from __future__ import annotations

import weakref
from types import MethodType, SimpleNamespace

import pytest
import torch

from gemma_ops import kernels
from gemma_ops.config.training_sections import KernelsConfig
from gemma_ops.kernels import attention_eager, graphs_capture, graphs_inputs, graphs_layers
from gemma_ops.kernels import install as installing
from gemma_ops.kernels.ops_runner import EAGER
from tests.helpers.kernel_models import apart, build, documents, packed, relative, tuned
from tests.helpers.tiny_models import KINDS

ONE, OTHER = documents([5, 40, 17, 33, 1, 24]), documents([60, 3, 70], seed=3)


def recorded(model, tape=graphs_capture.Again):
    """`model` with kernels, its passes recorded on a tape that needs no GPU."""
    text = installing.text_model_of(model)
    made = graphs_layers.Graphs(text, EAGER, tape)
    text.forward = MethodType(made.forward(type(text).forward), text)
    return made


def run(model, passes):
    """Hidden states of each pass, and the gradients of all together."""
    model.zero_grad()
    shown = []
    for docs in passes:
        batch = {key: value for key, value in packed(docs).items() if key != "use_cache"}
        hidden = kernels.forward_hidden(model, **batch)
        shown.append(hidden.detach().clone())
        (hidden * torch.sin(torch.arange(hidden.numel()).float()).view_as(hidden)).sum().backward()
    return shown, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", ["none", "mlp", "all"])
def test_replayed_passes_are_the_passes(kind, recompute):
    model = kernels.install_kernels(tuned(kind), KernelsConfig(), recompute=recompute)
    want, gradients = run(model, [ONE, OTHER, ONE])
    made = recorded(model)
    for _ in range(2):  # a second step finds the first one's memory and must not add to it
        got, ours = run(model, [ONE, OTHER, ONE])
        assert max(relative(a, b) for a, b in zip(got, want, strict=True)) < 1e-6
        assert apart(ours, gradients) < 1e-6
    assert made.on
    assert [room.tokens for room in made.kept] == [256, 128]
    learning = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is part for p, part in zip(learning, made.sums.parts, strict=True))


def test_gradients_of_passes_that_ran_before_are_kept():
    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    _, want = run(model, [OTHER, ONE])
    text = installing.text_model_of(model)
    made = graphs_layers.Graphs(text, EAGER, graphs_capture.Again)
    plain = text.forward
    model.zero_grad()
    for forward, docs in ((plain, OTHER), (MethodType(made.forward(type(text).forward), text), ONE)):
        text.forward = forward
        hidden = kernels.forward_hidden(model, **{k: v for k, v in packed(docs).items() if k != "use_cache"})
        (hidden * torch.sin(torch.arange(hidden.numel()).float()).view_as(hidden)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert apart(found, want) < 1e-6
    assert len(made.kept) == 1


def test_shorter_passes_lie_in_the_memory_of_a_longer_one():
    """Two dozen lengths would otherwise take gigabytes that no plan counts."""
    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    want, gradients = run(model, [OTHER, ONE, OTHER])
    made = recorded(model)
    got, ours = run(model, [OTHER, ONE, OTHER])
    assert max(relative(a, b) for a, b in zip(got, want, strict=True)) < 1e-6
    assert apart(ours, gradients) < 1e-6
    short, long = (one.slots for one in made.kept.values())
    assert (short.room.tokens, long.room.tokens) == (128, 256)
    for name in ("embeds", "outer", "positions", "per_layer"):
        assert getattr(short, name).data_ptr() == getattr(long, name).data_ptr()


def test_a_longer_pass_does_not_read_what_an_earlier_one_left():
    """Rows shorter than the memory leave an earlier pass's tokens behind their end, in a document of their own."""
    model = kernels.install_kernels(tuned("dense31"), KernelsConfig())
    short = documents([60, 40], seed=5)
    want, gradients = run(model, [short])
    made = recorded(model)
    run(model, [ONE])
    got, ours = run(model, [short])
    assert [room.tokens for room in made.kept] == [128]
    assert relative(got[0], want[0]) < 1e-6
    assert apart(ours, gradients) < 1e-6


@pytest.mark.parametrize("what", ["eval", "no grad", "autocast", "two rows"])
def test_anything_else_runs_as_it_did(what):
    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    made = recorded(model)
    batch = {key: value for key, value in packed(ONE).items() if key != "use_cache"}
    if what == "eval":
        model.eval()
    if what == "two rows":
        batch = {"input_ids": batch["input_ids"].view(2, -1), "position_ids": torch.arange(60).repeat(2, 1)}
    with torch.set_grad_enabled(what != "no grad"), torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
        kernels.forward_hidden(model, **batch)
    assert not made.kept


def test_a_pass_that_another_one_overtook_has_no_gradient():
    """Both would be the later one's: their activations share memory."""
    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    recorded(model)
    batches = [{k: v for k, v in packed(docs).items() if k != "use_cache"} for docs in (ONE, OTHER)]
    first, second = (kernels.forward_hidden(model, **batch) for batch in batches)
    second.sum().backward()
    with pytest.raises(RuntimeError, match="another pass was replayed"):
        first.sum().backward()


def test_rows_cut_short_are_refused_as_they_were():
    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    made = recorded(model)
    batch = {key: value for key, value in packed(ONE).items() if key != "use_cache"}
    with pytest.raises(NotImplementedError, match="whole patterns"):
        kernels.forward_hidden(model, **batch, logits_to_keep=3)
    kernels.forward_hidden(model, **batch, logits_to_keep=0)
    assert len(made.kept) == 1


def test_a_gpu_that_refuses_is_told_and_left_in_peace():
    class Refusing(graphs_capture.Again):
        def record(self, function):
            raise RuntimeError("operation not permitted when stream is capturing")

    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    want, gradients = run(model, [ONE])
    made = recorded(model, Refusing)
    with pytest.warns(UserWarning, match="without them: operation not permitted"):
        got, ours = run(model, [ONE])
    assert not made.on
    assert torch.equal(got[0], want[0])
    assert apart(ours, gradients) < 1e-6


def test_a_recording_that_fails_leaves_no_memory_behind():
    """The first recording that doesn't fit would otherwise be there still while the pass runs without."""
    held, alive = [], []

    class Refusing(graphs_capture.Again):
        def record(self, function):
            held.append(weakref.ref(function.__self__))
            raise RuntimeError("out of memory")

    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    made = recorded(model, Refusing)
    text = installing.text_model_of(model)
    hook = text.layers[0].register_forward_pre_hook(lambda *_: alive.append(bool(held) and held[0]() is not None))
    with pytest.warns(UserWarning, match="out of memory"):
        run(model, [ONE])
    hook.remove()
    assert not made.on
    assert alive == [False, False]  # of the warm-up, and of the pass itself


def test_adapters_in_another_type_are_trained_without():
    model = kernels.install_kernels(tuned("e2b", torch.bfloat16), KernelsConfig())
    for parameter in model.parameters():  # PEFT makes adapters float32
        parameter.data = parameter.data.to(torch.bfloat16)
    made = recorded(model)
    with pytest.warns(UserWarning, match="added up in float32"):
        _, gradients = run(model, [ONE])
    assert not made.on
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients.values())


def test_copies_of_adapters_that_grew_old_are_recorded_anew():
    model = kernels.install_kernels(tuned("e2b", torch.bfloat16), KernelsConfig())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    made = recorded(model)
    kernels.Copies(model).refresh()
    run(model, [ONE])
    (first,) = made.kept.values()
    run(model, [ONE])
    assert list(made.kept.values()) == [first]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(2.0)
    run(model, [ONE])  # nobody refreshed: recorded again, casting for itself
    (second,) = made.kept.values()
    assert second is not first
    kernels.Copies(model).refresh()
    run(model, [ONE])
    assert list(made.kept.values()) != [second]


def test_the_pass_not_used_for_longest_goes(monkeypatch):
    monkeypatch.setattr(graphs_layers, "MOST", 2)
    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    made = recorded(model)
    run(model, [ONE, OTHER, ONE, documents([300], seed=1)])
    assert sorted(room.tokens for room in made.kept) == [128, 384]


def test_a_length_has_one_recording_that_grows(monkeypatch):
    monkeypatch.setattr(graphs_inputs, "_DOCUMENTS", 2)
    monkeypatch.setattr(graphs_inputs, "_LONGEST", 16)
    model = kernels.install_kernels(tuned("e2b"), KernelsConfig())
    few, many = documents([100]), documents([20] * 5, seed=1)
    want, gradients = run(model, [few, many, few])
    made = recorded(model)
    got, ours = run(model, [few, many, few])
    assert list(made.kept) == [graphs_inputs.Room(128, 6, 128)]
    assert max(relative(a, b) for a, b in zip(got, want, strict=True)) < 1e-6
    assert apart(ours, gradients) < 1e-6


def test_room_is_rounded_up_and_holds_what_needs_less():
    room = graphs_inputs.room_for([0, 300, 700, 7735])
    assert (room.tokens, room.documents, room.longest) == (7936, 16, 7936)
    assert room.holds(graphs_inputs.room_for([0, 3000, 5000, 7900]))
    assert not room.holds(graphs_inputs.room_for([0, 3000, 5000, 7000]))
    assert not room.holds(graphs_inputs.room_for([*range(0, 7900, 300), 7900]))
    assert graphs_inputs.room_for([0, 5, 128]).tokens == 128


def test_numbers_on_the_device_say_where_documents_are():
    room = graphs_inputs.room_for([0, 3, 5, 126])
    numbers = graphs_inputs.Numbers(room, torch.device("cpu"))
    numbers.fill([0, 3, 5, 126])
    assert numbers.bounds.tolist() == [0, 3, 5, 126, *[128] * 13]
    assert numbers.starts.tolist() == [0] * 3 + [3] * 2 + [5] * 121 + [126] * 2
    assert numbers.stops.tolist() == [3] * 3 + [5] * 2 + [126] * 121 + [128] * 2


def test_documents_that_only_the_device_knows_are_never_taken_for_none():
    """Without a kernel for them, spans would be looked for, and there are none."""
    room = graphs_inputs.room_for([0, 3, 5, 126])
    fixed = graphs_inputs.Fixed((), numbers=graphs_inputs.Numbers(room, torch.device("cpu")))
    q = torch.randn(1, 2, 128, 8)
    with pytest.raises(TypeError, match="only the device knows"):
        attention_eager.attend(q, q, q, fixed, 16, None, 0.0)


def test_only_what_launches_the_same_kernels_every_time_is_recorded():
    assert not installing._replays(installing.text_model_of(tuned("e2b")), KernelsConfig())  # no GPU
    frozen = build("e2b").requires_grad_(False)
    assert not installing._replays(installing.text_model_of(frozen), KernelsConfig())


@pytest.mark.parametrize(("capability", "mixture", "replays"), [(8, False, True), (8, True, False), (9, True, True)])
def test_a_mixture_is_recorded_where_its_products_wait_for_nothing(monkeypatch, capability, mixture, replays):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    factor = SimpleNamespace(requires_grad=True, is_cuda=True, get_device=lambda: 0, device=torch.device("cuda"))
    layer = SimpleNamespace(experts=None) if mixture else SimpleNamespace()
    text = SimpleNamespace(
        parameters=lambda: [factor], modules=list, layers=[layer], config=SimpleNamespace(attention_dropout=0)
    )
    assert installing._replays(text, KernelsConfig()) == replays


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_replay_what_was_launched(kind):
    def moved(model, passes):
        model.zero_grad()
        for docs in passes:
            batch = {k: v.cuda() if torch.is_tensor(v) else v for k, v in packed(docs).items() if k != "use_cache"}
            hidden = kernels.forward_hidden(model, **batch)
            (hidden.float() * torch.sin(torch.arange(hidden.numel(), device="cuda")).view_as(hidden)).sum().backward()
            del hidden
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model = tuned(kind, torch.bfloat16).cuda()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    kernels.install_kernels(model, KernelsConfig(graphs="off"))
    kernels.Copies(model).refresh()
    want = moved(model, [ONE, OTHER, ONE])
    kernels.install_kernels(model, KernelsConfig(), replay=True)
    kernels.Copies(model).refresh()
    for _ in range(2):
        assert apart(moved(model, [ONE, OTHER, ONE]), want) < 2e-2
