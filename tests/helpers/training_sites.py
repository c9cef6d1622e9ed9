"""Where a training's parts run by themselves in a test: on the CPU, alone, without a teacher."""

from __future__ import annotations

from gemma_ops.config import LaunchConfig, Machine
from gemma_ops.data import published
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.training.course import TrainingSite


def site_of(folder, work, *, machine=None, template=None):
    """The site of a training from the checkpoint `folder`, whose tables go below `work`."""
    template = template or published.template_of(folder)
    return TrainingSite(
        folder, work, machine or Machine(), LaunchConfig(), "cpu", load_tokenizer(folder), template, None, None
    )
