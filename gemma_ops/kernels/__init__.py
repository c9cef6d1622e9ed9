"""Exact, faster forms of Gemma 4's training operations, put on a loaded model by `install`."""

from gemma_ops.kernels.head_distill import linear_distillation
from gemma_ops.kernels.head_losses import labelled, linear_cross_entropy, linear_dft, token_nll, token_scores
from gemma_ops.kernels.install import forward_hidden, install_kernels, uninstall
from gemma_ops.kernels.lora_casts import Copies

__all__ = [
    "Copies",
    "forward_hidden",
    "install_kernels",
    "labelled",
    "linear_cross_entropy",
    "linear_dft",
    "linear_distillation",
    "token_nll",
    "token_scores",
    "uninstall",
]
