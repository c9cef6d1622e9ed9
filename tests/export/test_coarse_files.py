"""Files of fewer bits than a size bears: refused where they are only rounded."""

from __future__ import annotations

import pytest

from gemma_ops import family
from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import ConfigError
from gemma_ops.export import quantize
from gemma_ops.export.coarse_files import check_coarse
from tests.helpers import tiny_models


@pytest.mark.parametrize(
    "settings",
    [{"formats": ("q4_k_m",)}, {"formats": ("q8_0", "iq4_xs", "q4_0")}, {"formats": ("q4_0",), "fit": "importance"}],
)
def test_e4b_is_not_only_rounded_below_five_bits(settings):
    with pytest.raises(ConfigError, match="E4B below 5 bits a weight loses its language") as told:
        check_coarse(QuantizeConfig(**settings), "E4B")
    assert "(quantize.fit=scales)" in told.value.fix
    assert "take q6_k or q5_k_m or q5_k or q5_0" in told.value.fix


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"formats": ("q4_k_m",)}, "E2B"),
        ({"formats": ("q4_k_m",)}, None),
        ({"formats": ("q5_k_m", "q8_0")}, "E4B"),
        ({"formats": ("q4_0",), "fit": "scales"}, "E4B"),
        ({"formats": ("q4_0",), "coarse": True}, "E4B"),
        ({"formats": ("mixed",), "bits": 4.6}, "E4B"),
    ],
)
def test_what_it_bears_is_made(settings, size):
    check_coarse(QuantizeConfig(**settings), size)


def test_the_step_asks_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(family, "identify", lambda _config: "E4B")
    with pytest.raises(ConfigError, match="only rounded"):
        quantize(tmp_path, QuantizeConfig(formats=("q4_0",)), MachineConfig(device="cpu"), model=tiny_models.NANO)
    assert not list(tmp_path.iterdir())
