"""Every setting of the preference and reinforcement methods reaches what it configures, and says so where it can't."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from gemma_ops.config import ReinforceConfig, TrainConfig
from gemma_ops.config.methods import PREFERENCE, REINFORCE, PreferenceConfig
from gemma_ops.errors import ConfigError
from gemma_ops.nano import WEIGHTS
from gemma_ops.training.arguments import _WHY, common, training_arguments
from gemma_ops.training.methods import dpo, grpo, kto, orpo, reward_model, rewards, rloo

METHODS = get_args(TrainConfig.model_fields["method"].annotation)
MODULES = {"dpo": dpo, "kto": kto, "orpo": orpo, "reward": reward_model, "grpo": grpo, "rloo": rloo}
OTHER = {
    "distill": {"distill": {"teacher": "./x"}},
    "grpo": {"reinforce": {"rewards": ["exact_match"]}},
    "rloo": {"reinforce": {"rewards": ["exact_match"]}},
}


def settings(method, section=None, **keys):
    body = {key: dict(value) for key, value in OTHER.get(method, {}).items()}
    if section:
        body[section] = body.get(section, {}) | keys
    return TrainConfig(method=method, weights="fp32", **body)


def arguments(tmp_path, given):
    """What TRL is told."""
    module = MODULES[given.method]
    options = {
        name: {"tabled": False, "world": 1}[name]
        for name in inspect.signature(module.owned).parameters
        if name != "settings"
    }
    keys = common(given, tmp_path, has_valid=False, rate=1e-3, device="cpu")
    return training_arguments(
        module.CONFIG, given, keys | module.owned(given, **options), getattr(module, "KNOWN", None)
    )


PREFERENCES = {
    "loss": [("dpo", "ipo", "loss_type", ["ipo"]), ("kto", "apo_zero_unpaired", "loss_type", "apo_zero_unpaired")],
    "beta": [(method, 0.3, "beta", 0.3) for method in ("dpo", "kto", "orpo")],
    "desirable_weight": [("kto", 2.0, "desirable_weight", 2.0)],
    "undesirable_weight": [("kto", 2.0, "undesirable_weight", 2.0)],
}
REINFORCEMENTS = {
    "generations": [(method, 4, "num_generations", 4) for method in REINFORCE],
    "max_new_tokens": [(method, 9, "max_completion_length", 9) for method in REINFORCE],
    "temperature": [(method, 0.7, "temperature", 0.7) for method in REINFORCE],
    "beta": [(method, 0.2, "beta", 0.2) for method in REINFORCE],
    "clip": [(method, 0.1, "epsilon", 0.1) for method in REINFORCE],
    "loss": [("grpo", "dr_grpo", "loss_type", "dr_grpo")],
    "scale": [("grpo", "none", "scale_rewards", "none")],
    "cut": [(method, "mask", "mask_truncated_completions", True) for method in REINFORCE],
    "rewards": [(method, ({"metric": "length", "weight": 3.0},), "reward_weights", [3.0]) for method in REINFORCE],
}
ELSEWHERE = {"label_smoothing", "sft_weight"}
"""Keys whose tests stand below: they belong to some losses only, or are not TRL's."""


def test_the_walk_is_over_every_key():
    assert PREFERENCES.keys() | ELSEWHERE == PreferenceConfig.model_fields.keys()
    assert REINFORCEMENTS.keys() == ReinforceConfig.model_fields.keys()


CASES = [
    (section, key, *case)
    for section, table in (("preference", PREFERENCES), ("reinforce", REINFORCEMENTS))
    for key, cases in table.items()
    for case in cases
]


@pytest.mark.parametrize("section, key, method, value, name, told", CASES)
def test_a_key_reaches_trl(tmp_path, section, key, method, value, name, told):
    assert getattr(arguments(tmp_path, settings(method, section, **{key: value})), name) == told
    assert getattr(arguments(tmp_path, settings(method)), name) != told


@pytest.mark.parametrize("section, key, method, value, name, told", CASES)
def test_a_method_that_does_not_read_a_key_refuses_it(section, key, method, value, name, told):
    readers = {case[2] for case in CASES if case[:2] == (section, key)}
    for other in set(METHODS) - readers:
        with pytest.raises(ValueError, match=rf"train\.{section}\.{key} says nothing to train\.method {other}"):
            settings(other, section, **{key: value})


def test_smoothing_belongs_to_two_losses(tmp_path):
    given = settings("dpo", "preference", loss="robust", label_smoothing=0.1)
    assert arguments(tmp_path, given).label_smoothing == 0.1
    with pytest.raises(ValueError, match="is used by the losses robust and exo_pair only"):
        settings("dpo", "preference", label_smoothing=0.1)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "dpo"])
def test_a_loss_of_another_method_is_refused(method):
    with pytest.raises(ValueError, match=r"train\.preference\.loss"):
        settings(method, "preference", loss="hinge")
    with pytest.raises(ValueError, match=r"train\.preference\.sft_weight says nothing"):
        settings(method, "preference", sft_weight=1.0)


@pytest.mark.parametrize("key", ["temperature", "mix", "teacher"])
def test_a_teacher_is_for_distillation(key):
    value = "./x" if key == "teacher" else 0.7
    for method in set(METHODS) - {"distill"}:
        with pytest.raises(ValueError, match=rf"train\.distill\.{key} says nothing to train\.method {method}"):
            settings(method, "distill", **{key: value})


@pytest.mark.parametrize("method", [*PREFERENCE, *REINFORCE])
@pytest.mark.parametrize(
    "keys", [{"neftune": 5.0}, {"loss_on": "last"}, {"batch_tokens": 1000}, {"tune": "full"}], ids=str
)
def test_settings_of_supervised_training_are_refused(method, keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        TrainConfig(method=method, **OTHER.get(method, {}), **keys)


@pytest.mark.parametrize("method", MODULES)
def test_what_is_passed_through_is_checked(tmp_path, method):
    def told(**keys):
        return arguments(tmp_path, settings(method).model_copy(update={"trl": keys}))

    assert told(adam_beta2=0.95).adam_beta2 == 0.95
    module = MODULES[method]
    options = {
        name: {"tabled": False, "world": 1}[name]
        for name in inspect.signature(module.owned).parameters
        if name != "settings"
    }
    for key in [*module.owned(settings(method), **options), "seed", "bf16"]:
        with pytest.raises(ConfigError, match=rf"train\.trl\.{key} is set by gemma-ops"):
            told(**{key: 1})
    for key in _WHY:
        with pytest.raises(ConfigError, match=rf"train\.trl\.{key} is set by gemma-ops"):
            told(**{key: 1})
    with pytest.raises(ConfigError, match="did you mean adam_beta2"):
        told(adam_betta2=0.9)
    with pytest.raises(ConfigError, match="unknown to"):
        told(packing_strategy=1)


def test_orpo_passes_no_keys_of_dpo(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.trl\.ld_alpha is unknown"):
        arguments(tmp_path, settings("orpo").model_copy(update={"trl": {"ld_alpha": 0.5}}))
    dpos = arguments(tmp_path, settings("dpo").model_copy(update={"trl": {"ld_alpha": 0.5}}))
    assert dpos.ld_alpha == 0.5


@pytest.mark.parametrize("cut, value", [("zero", 0.0), ("score", 1.0), ("mask", 1.0)])
def test_a_cut_answer_is_worth_what_is_said(cut, value):
    given = ReinforceConfig(rewards=("contains",), cut=cut)
    made = rewards.Rewards(given, ["yes"], None, set())
    assert made.judge(made.scorers[0], "yes and", True, "yes", "0") == value
    assert made.judge(made.scorers[0], "yes and", False, "yes", "0") == 1.0


def test_rewards_are_summed_by_weight_and_their_mistakes_told_together():
    terms = ({"metric": "exact_match", "weight": 2.0}, {"metric": "length", "weight": -1.0, "options": {"min": 2}})
    made = rewards.Rewards(ReinforceConfig(rewards=terms), ["yes"], None, set())
    assert made.total("yes", False, "yes", "0") == (2.0, {"exact_match": 1.0, "length": 0.0})
    assert made.total("oh yes", False, "yes", "0")[0] == -1.0
    wrong = (
        {"metric": "exact_mach"},
        {"metric": "length", "options": {"mim": 2}},
        {"metric": "regex", "options": {"pattern": "("}},
    )
    with pytest.raises(ConfigError) as error:
        rewards.reward_metrics(ReinforceConfig(rewards=wrong))
    assert "did you mean exact_match?" in error.value.what
    assert "rewards.1.options: mim" in error.value.what
    assert "not a regular expression" in error.value.what


def test_an_answers_reward_is_what_evaluation_would_say():
    """Tokens are read as evaluation reads them: up to the stop token, thoughts apart."""
    from gemma_ops.data import chat
    from gemma_ops.modeling.generate import read_reply

    tokenizer = chat.load_tokenizer(WEIGHTS)
    stop = tokenizer.token_to_id("<turn|>")
    made = rewards.Rewards(ReinforceConfig(rewards=("exact_match",)), ["yes"], tokenizer, {stop})
    ids = [*tokenizer.encode("yes", add_special_tokens=False).ids, stop]
    assert read_reply(tokenizer, ids, {stop}).text == "yes"
    (function,) = made.functions()
    assert function(completion_ids=[ids, ids[:-1]], reference=["yes"] * 2, row=["0", "1"]) == [1.0, 0.0]
    assert function.__name__ == "exact_match"
