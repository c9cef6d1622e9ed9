"""NEFTune: noise on the embeddings while training, scaled by the length of each document.

transformers scales by the length of what it is given, which for packed rows is the pass and not the document, so the
same rows would be disturbed less the better they are packed.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.training.forward_inputs import BOUNDS


class Noise:
    """Uniform noise in ±alpha / sqrt(L · H) on the embedding of each token, L its document's length and H the hidden
    size.

    Source: arXiv 2310.05914, algorithm 1.
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self.alpha = alpha
        self._lengths: Any = None
        model.get_input_embeddings().register_forward_hook(self._disturb)

    def documents(self, arguments: dict[str, Any]) -> None:
        """Note how long the document of each token is, from the arguments of a forward pass."""
        import torch

        ids = arguments["input_ids"]
        if BOUNDS in arguments:
            bounds = torch.tensor(arguments[BOUNDS], device=ids.device)
        elif "position_ids" in arguments:
            starts = torch.nonzero(arguments["position_ids"][0] == 0).flatten()
            bounds = torch.cat([starts, torch.tensor([ids.shape[1]], device=ids.device)])
        else:
            self._lengths = arguments["attention_mask"].sum(1, keepdim=True).expand_as(ids)
            return
        lengths = bounds.diff()
        self._lengths = lengths.repeat_interleave(lengths)[None]

    def _disturb(self, module: Any, _inputs: Any, output: Any) -> Any:
        import torch

        if not module.training or self._lengths is None:
            return output
        size = self.alpha / torch.sqrt(self._lengths.float() * output.shape[-1])
        noise = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1) * size[..., None]
        return output + noise.to(output.dtype)
