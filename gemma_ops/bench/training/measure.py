"""Clocks and peak memory of one training, read from outside through a trainer's callbacks.

On a CPU a machine is seldom idle, so the clock is the processor time that this process itself spent in its own code
(`ru_utime`); on a GPU it is the wall, with the device synchronised at both ends. Memory is what was needed beyond the
loaded model: the process's own high-water mark, or that of the CUDA allocator.
"""

from __future__ import annotations

import gc
import hashlib
import resource
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_B_STD = 0.01
"""Standard deviation of LoRA B's values: at its usual zero LoRA A would have no gradient to compare."""


class Watch(TrainerCallback):  # type: ignore[misc]
    """Callback that times optimizer steps and keeps the gradients of the first one.

    The first step is the warm-up: its time is not counted, its loss and its gradients are compared. `kernels` counts
    the CUDA kernels of one more step at the end.
    """

    def __init__(self, device: str, *, steps: int, seed: int, gradients: bool, kernels: bool = False) -> None:
        self.device, self.steps, self.seed = device, steps, seed
        self.gradients: dict[str, Any] | None = {} if gradients else None
        self.stamps: list[tuple[float, float, float]] = []
        """Wall, user and system seconds at the end of each step."""
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.loaded = 0
        self.trainable = 0
        self._warm = 0
        """Bytes at the peak of the warm-up step, in which CUDA graphs are captured."""
        self.kernels: int | None = None
        self._profiler: Any = None
        self._count = kernels and device == "cuda"

    def restart(self) -> None:
        """Forget an attempt that ran out of memory."""
        self.stamps, self.losses, self.norms, self._warm = [], [], [], 0
        if self.gradients is not None:
            self.gradients = {}

    @property
    def all_steps(self) -> int:
        """Return the optimizer steps to run: the warm-up, the timed ones, and one under the profiler."""
        return 1 + self.steps + self._count

    def model_loaded(self, model: Any) -> None:
        """Note that the base is in memory, before adapters: memory from here on is the training's."""
        for parameter in model.parameters():  # pages of a mapped file come in when they are first read
            parameter.data.view(-1)[:: 4096 // parameter.element_size()].sum()
        gc.collect()
        self.loaded = _reset(self.device)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        same_adapter(model, self.seed)
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._count and state.global_step == self.all_steps - 1:
            import torch

            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self.gradients is not None and state.global_step == 0:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    self.gradients[short_parameter(name)] = parameter.grad.detach().float().cpu().clone()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self.kernels = sum("CUDA" in str(event.device_type) for event in self._profiler.events())
            return
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
            if not self.stamps:
                self._warm = int(torch.cuda.max_memory_allocated())
                torch.cuda.reset_peak_memory_stats()
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.stamps.append((time.perf_counter(), used.ru_utime, used.ru_stime))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.norms.append(float(logs.get("grad_norm", 0.0)))

    def result(self) -> dict[str, Any]:
        """Return seconds of each timed step by clock, bytes at the peak beyond the loaded model, losses and gradient
        norms."""
        spans = [
            tuple(late - early for early, late in zip(before, after, strict=True))
            for before, after in zip(self.stamps, self.stamps[1:], strict=False)
        ][: self.steps]
        return {
            "wall": [span[0] for span in spans],
            "user": [span[1] for span in spans],
            "system": [span[2] for span in spans],
            "loaded_bytes": self.loaded,
            "peak_bytes": max(self._warm, _peak(self.device)) - self.loaded,
            "losses": self.losses,
            "gradient_norms": self.norms,
            "trainable": self.trainable,
            "kernels": self.kernels,
        }


def short_parameter(name: str) -> str:
    """Return a parameter's name from its decoder layer on: what comes before depends on the class, what PEFT adds on
    the trainer."""
    return name[name.index("layers.") :].replace(".default", "") if "layers." in name else name


def same_adapter(model: Any, seed: int) -> None:
    """Give LoRA A and B of every adapter values that depend on their name and `seed` alone, so that all arms start
    alike."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name):
            digest = hashlib.sha256(f"{seed} {short_parameter(name)}".encode()).digest()
            random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            std = _B_STD if "lora_B" in name else parameter.shape[1] ** -0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * std)


def agreement(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """Return cosine and relative error of one step's gradients, over all parameters together.

    Raises ValueError when the two sets of parameters differ.
    """
    if ours.keys() != reference.keys():
        odd = sorted(ours.keys() ^ reference.keys())
        raise ValueError(f"{len(odd)} parameters have a gradient in one arm only, the first: {odd[0]}")
    product = size = other = error = 0.0
    for name, value in reference.items():
        mine = ours[name].double().reshape(-1)
        theirs = value.double().reshape(-1)
        product += float(mine @ theirs)
        size += float(mine @ mine)
        other += float(theirs @ theirs)
        error += float((mine - theirs).square().sum())
    return {"cosine": product / max((size * other) ** 0.5, 1e-300), "error": (error / max(other, 1e-300)) ** 0.5}


def best_seconds(work: Any, device: str, *, repeats: int = 10) -> float:
    """Return the shortest of some timings of `work`, after two that are not counted."""
    import torch

    spent = []
    for index in range(repeats + 2):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        if index >= 2:
            spent.append(time.perf_counter() - began)
    return min(spent)


def _reset(device: str) -> int:
    """Forget the peak so far, and return the bytes in use now."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    _CLEAR.write_text("5", encoding="ascii")  # resets VmHWM: `man 5 proc_pid_clear_refs`
    return _status("VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated()) + _recorded()
    return _status("VmHWM")


def _recorded() -> int:
    """Return the bytes that only captured CUDA graphs use: theirs to the end, though the allocator counts them as
    free."""
    import torch

    segments = torch.cuda.memory_snapshot()
    own = [segment for segment in segments if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0)]
    return int(sum(segment["total_size"] - segment["allocated_size"] for segment in own))


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
