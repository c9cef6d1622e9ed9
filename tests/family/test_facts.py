"""What `family` says of the sizes, and how it answers a wrong name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gemma_ops import family
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.family.explain_trap import explain_trap


def test_importing_the_family_brings_nothing_heavy_along():
    code = (
        "import sys, gemma_ops.family\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'yaml', 'typer', 'rich'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_published_facts():
    facts = {
        key: (size.context, size.empty_thought, "audio" in size.modalities, size.global_layers, len(size.shape.layers))
        for key, size in family.SIZES.items()
    }
    assert facts == {
        "E2B": (131_072, False, True, 7, 35),
        "E4B": (131_072, False, True, 7, 42),
        "12B": (262_144, True, True, 8, 48),
        "26B-A4B": (262_144, True, False, 5, 30),
        "31B": (262_144, True, False, 10, 60),
    }
    assert {size.licence for size in family.SIZES.values()} == {"Apache-2.0"}
    assert family.SIZES["E2B"].learning_rate < family.SIZES["E4B"].learning_rate


def test_what_exists_in_which_layer():
    e2b, large = family.SIZES["E2B"].shape, family.SIZES["31B"].shape
    names = {linear.name for linear in e2b.linears()}
    assert "model.language_model.layers.14.self_attn.k_proj" in names
    assert "model.language_model.layers.15.self_attn.k_proj" not in names  # shares
    assert [layer.ffn for layer in e2b.layers[14:16]] == [6144, 12_288]  # sharing layers are twice as wide
    names = {linear.name for linear in large.linears()}
    assert "model.language_model.layers.5.self_attn.k_proj" in names
    assert "model.language_model.layers.5.self_attn.v_proj" not in names  # keys are values there
    assert [layer.head_dim for layer in large.layers[4:6]] == [256, 512]
    assert [layer.kv_heads for layer in large.layers[4:6]] == [16, 4]


def test_every_size_has_three_repositories_and_they_are_found():
    assert len(family.repos()) == 15
    size, variant = family.repos()["google/gemma-4-26B-A4B-it-qat-q4_0-unquantized"]
    assert (size.key, variant) == ("26B-A4B", "qat")
    assert family.by_repo("google/gemma-4-31B").key == "31B"
    assert family.find_size("google/gemma-3-4b-it") is None


@pytest.mark.parametrize(
    ("repo", "told"),
    [
        ("google/gemma-4-e2b-it", "did you mean google/gemma-4-E2B-it?"),
        ("gogle/gemma-4-31B-it", "did you mean google/gemma-4-31B-it?"),
        ("google/gemma-4-31B-it-qat-q4_0-gguf", "made for serving"),
        ("google/gemma-4-12B-it-assistant", "made for serving"),
    ],
)
def test_a_wrong_repository_is_told_apart(repo, told):
    with pytest.raises(ConfigError) as caught:
        family.by_repo(repo)
    assert told in caught.value.what


def test_another_model_is_refused():
    with pytest.raises(ModelError, match="not a Gemma 4"):
        family.Shape.from_config({"model_type": "gemma3", "text_config": {}})
    with pytest.raises(ModelError, match="num_hidden_layers"):
        family.Shape.from_config({"model_type": "gemma4", "text_config": {"hidden_size": 8}})


def test_a_bad_target_expression_is_told():
    shape = family.SIZES["E4B"].shape
    with pytest.raises(ConfigError, match="not a regular expression"):
        family.lora_linears(shape, "(")
    with pytest.raises(ConfigError, match="matches no linear"):
        family.lora_linears(shape, "q_proj")  # PEFT matches whole names
    only = family.lora_linears(shape, r".*\.q_proj")
    assert len(only) == 42


def test_traps_name_known_sizes_and_say_what_to_do():
    codes = [trap.code for trap in family.TRAPS]
    assert len(codes) == len(set(codes))
    for trap in family.TRAPS:
        assert set(trap.applies) <= set(family.SIZES)
        assert trap.what
        assert trap.evidence
        assert trap.fix
        assert trap.here
        assert trap.evidence in " ".join(" ".join(explain_trap(trap.code)).split())
    assert "reentrant-checkpointing" in {trap.code for trap in family.traps("E2B")}
    assert "reentrant-checkpointing" not in {trap.code for trap in family.traps("31B")}  # nothing is shared there
    for key, size in family.SIZES.items():
        sharing = "reentrant-checkpointing" in {trap.code for trap in family.traps(key)}
        assert sharing == size.shape.shares_kv
        thought = "empty-thought" in {trap.code for trap in family.traps(key)}
        assert thought == size.empty_thought


def test_an_unknown_combination_is_told_with_the_closest_name():
    with pytest.raises(ConfigError, match="did you mean uint8-storage"):
        explain_trap("uint8-storag")
