"""A Gemma 4 that scores answers instead of writing them: the same layers, and one number from the last token.

transformers has no such class for this family, so the loaded model becomes one: its forward pass takes whole rows and
gives a score each, read by a linear head in float32 that starts at zero. Parameter names stay what they were, so
adapters fit, and rows stand end to end without padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_ops.errors import ModelError

FILE = "score.safetensors"
"""File of the reward head, next to the adapter."""


def as_reward(model: Any) -> Any:
    """Turn a loaded model (before an adapter is put on) into one that scores; `model.score` is the new head."""
    import torch

    model.score = torch.nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False, dtype=torch.float32)
    torch.nn.init.zeros_(model.score.weight)
    model.score.to(model.device)
    model.config.num_labels = 1
    model.__class__ = type(f"{type(model).__name__}Reward", (_Scores, type(model)), {})
    return model


class _Scores:
    """The forward pass of a model that scores."""

    def forward(self: Any, input_ids: Any, attention_mask: Any, use_cache: bool = False, **kwargs: Any) -> Any:
        """Return scores [rows, 1] of rows padded to the right."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        mask = attention_mask.bool()
        positions = (mask.long().cumsum(1) - 1)[mask][None]
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        states = self.model(
            input_ids=input_ids[mask][None], position_ids=positions, use_cache=False, **kwargs
        ).last_hidden_state[0]
        ends = mask.sum(1).cumsum(0) - 1
        return SequenceClassifierOutput(logits=self.score(states[ends].float()))


def save_score(model: Any, folder: Path) -> None:
    """Write the head to `folder`."""
    from safetensors.torch import save_file

    save_file({"score.weight": _head(model).weight.detach().cpu().contiguous()}, str(folder / FILE))


def load_score(model: Any, folder: Path) -> None:
    """Read the head from `folder`. Raises ModelError when there is none or it belongs to another size."""
    import torch
    from safetensors.torch import load_file

    path = folder / FILE
    if not path.is_file():
        raise ModelError(f"{path} does not exist", "an adapter of `train.method: reward` has its head next to it")
    head, weight = _head(model), load_file(str(path))["score.weight"]
    if weight.shape != head.weight.shape:
        raise ModelError(
            f"{path} is for states of {weight.shape[1]} numbers, and this base has {head.weight.shape[1]}",
            "use the base named in its adapter_config.json",
        )
    with torch.no_grad():
        head.weight.copy_(weight)


def load_reward(base: Path, adapter: Path, **options: Any) -> Any:
    """Load a trained reward model: `base` is a checkpoint folder, `adapter` the folder that training wrote.

    `options` are those of `load_model`. Raises ModelError as `adapter_files.load_adapter` and `load_score` do.
    """
    from gemma_ops.modeling import adapters
    from gemma_ops.modeling.load import load_model

    model = adapters.load_adapter(as_reward(load_model(base, **options)), adapter)
    load_score(model, adapter)
    return model


def scores(model: Any, rows: list[list[int]], *, batch_size: int = 16) -> list[float]:
    """Return the score of each row of token ids, which ends with the answer's closing token."""
    import torch

    found: list[float] = []
    for start in range(0, len(rows), batch_size):
        chosen = rows[start : start + batch_size]
        longest = max(map(len, chosen))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in chosen], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in chosen], device=model.device)
        with torch.inference_mode():
            found += model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
    return found


def _head(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).score
