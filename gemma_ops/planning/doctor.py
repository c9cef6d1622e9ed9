"""Fitness of the machine: versions, devices, memory, disk, combinations known to go wrong, what each size can do.

Reads installed metadata and files only; nothing heavy is imported, so it answers in under a second even when torch
itself is broken. The tested windows are those of the installed package's own requirements: there is no second list.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from gemma_ops import family
from gemma_ops.config import LoraConfig, ModelConfig, RunConfig, TrainConfig
from gemma_ops.family import explain_trap
from gemma_ops.family.formats import BITS, SMALLEST, TABLE_TYPE
from gemma_ops.offline import guard
from gemma_ops.planning import devices
from gemma_ops.planning.devices import GIB, Device
from gemma_ops.planning.vllm_environment import vllm_findings

Status = Literal["ok", "warn", "bad"]
_MARK = {"ok": "✓", "warn": "!", "bad": "✗"}

_LEAST_DISK = 10
"""Free disk, in gigabytes, below which even E2B's checkpoint doesn't fit."""
_SERVING = 1.5
"""GiB for a server's KV cache and buffers at a few thousand tokens of context."""


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    status: Status
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Ability:
    """What one size can do on the best device of this machine."""

    size: str
    lora: str
    """`yes`, `tight` or `no`, for 2,048 tokens at a time with all layers recomputed."""
    lora_gib: float
    qlora: str
    qlora_gib: float
    tokens_per_second: float | None
    """Tokens per second of the method that fits, LoRA first; None where neither does or the speed is unknown."""
    serve: str
    serve_gib: float


@dataclass(frozen=True)
class DoctorReport:
    """Everything `doctor` found."""

    checks: tuple[Check, ...]
    device: Device
    abilities: tuple[Ability, ...]

    def lines(self) -> list[str]:
        width = max(len(check.name) for check in self.checks)
        text = []
        for check in self.checks:
            text.append(f"{_MARK[check.status]} {check.name:<{width}}  {check.what}")
            if check.fix:
                text.append(f"  {'':<{width}}  try: {check.fix}")
        text += [
            "",
            f"Gemma 4 on {self.device.name} ({self.device.memory:.0f} GiB), one row of 2,048 tokens at a time:",
        ]
        text.append(f"  {'size':<8}  {'LoRA':<15}  {'QLoRA':<15}  {'tokens/s':>8}  serve {SMALLEST.name}")
        for one in self.abilities:
            pace = _pace(one.tokens_per_second)
            cells = (_cell(one.lora, one.lora_gib), _cell(one.qlora, one.qlora_gib))
            text.append(
                f"  {one.size:<8}  {cells[0]:<15}  {cells[1]:<15}  {pace:>8}  {_cell(one.serve, one.serve_gib)}"
            )
        text += ["", "Known to go wrong, and what gemma-ops does (`gemma-ops doctor NAME` for evidence):"]
        return text + explain_trap.overview()

    def to_json(self) -> dict[str, Any]:
        return {
            "checks": [asdict(check) for check in self.checks],
            "device": asdict(self.device),
            "sizes": [asdict(one) for one in self.abilities],
            "traps": [asdict(trap) for trap in family.TRAPS],
        }


def examine(vllm_python: str | None = None) -> DoctorReport:
    """Look at this machine and this environment, and at vLLM's, where its Python is named."""
    gpus = devices.present_devices()
    best = gpus[0] if gpus else devices.processor()
    checks = (
        *_python(),
        *_packages(),
        *_machine(gpus),
        Check("offline", "ok", guard.prospects()),
        *(Check("vllm", *finding) for finding in vllm_findings(vllm_python, gpu=bool(gpus))),
        *_combinations({name: _version(name) for name in _WATCHED}, gpus, dict(os.environ)),
    )
    return DoctorReport(checks, best, tuple(_ability(key, best) for key in family.SIZES))


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Check]:
    """Compare installed versions with the windows in gemma-ops' own requirements."""
    try:
        lines = importlib.metadata.requires("gemma-ops") or []
        names = importlib.metadata.metadata("gemma-ops").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(
            "packages", "bad", "gemma-ops is not installed in this environment", "run `make setup`, or pip install -e ."
        )
        return
    good, extras = 0, dict.fromkeys(names, True)
    for requirement, extra in required(lines, names):
        name, version = requirement.name, _version(requirement.name)
        if extra:
            extras[extra] &= version is not None
        elif version is None:
            yield Check(name, "bad", f"not installed; {requirement.specifier} is needed", "run `make setup`")
        elif not inside_window(version, str(requirement.specifier)):
            window = requirement.specifier
            yield Check(name, "warn", f"{version} lies outside the tested {window}", f"pip install '{name}{window}'")
        else:
            good += 1
    stack = ", ".join(
        f"{name} {_version(name)}"
        for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")
        if _version(name)
    )
    yield Check("packages", "ok", f"{good} in their tested windows: {stack}")
    there = sorted(name for name, complete in extras.items() if complete)
    absent = sorted(name for name, complete in extras.items() if not complete)
    yield Check(
        "extras", "ok", f"installed: {', '.join(there) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    )


def required(lines: Sequence[str], extras: Sequence[str]) -> Iterator[tuple[Requirement, str | None]]:
    """Yield the requirements that hold on this machine and the extra that asks for each, None for the package itself.

    `lines` are spelled as metadata spells them: `xllamacpp>=2026.10; extra == "gguf"`.
    """
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement, None
        else:
            yield from ((requirement, extra) for extra in extras if requirement.marker.evaluate({"extra": extra}))


def inside_window(version: str, window: str) -> bool:
    """True if a version lies in a window such as `>=5.23,<5.24`; local parts (`+cpu`) don't count.

    A pre-release lies below its release, and outside a window that ends there. So does what is no version at all.
    """
    try:
        return SpecifierSet(window).contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine(gpus: list[Device]) -> Iterator[Check]:
    if gpus:
        named = ", ".join(f"{gpu.name} ({gpu.memory:.0f} GiB)" for gpu in gpus)
        more = "; one is used" if len(gpus) > 1 else ""
        yield Check("gpu", "ok", named + more)
    else:
        yield Check("gpu", "ok", "none: nano trains on the CPU; for other sizes see `gemma-ops plan --device`")
    cpu = devices.processor()
    yield Check("cpu", "ok", f"{cpu.name}, {cpu.memory:.0f} GiB of memory")
    free = shutil.disk_usage(".").free / 1e9
    if free < _LEAST_DISK:
        yield Check("disk", "warn", f"{free:.1f} GB free here", "free some space, or set machine.runs to another disk")
    else:
        yield Check("disk", "ok", f"{free:.0f} GB free here")


_WATCHED = ("torch", "torchvision", "transformers", "mlflow", "flash-attn", "deepspeed", "bitsandbytes")


def _combinations(versions: dict[str, str | None], gpus: list[Device], environment: dict[str, str]) -> Iterator[Check]:
    """Find pairs of packages that install without complaint and fail later; most are traps of `family.TRAPS`."""
    torch, vision = versions.get("torch"), versions.get("torchvision")
    if torch and vision and torch.endswith("+cpu") and not vision.endswith("+cpu"):
        yield Check(
            "torchvision", "bad",
            f"{vision} was built for CUDA and torch {torch} for the CPU: importing Gemma 4's configuration fails",
            "pip uninstall torchvision, or install both from the same CPU build",
        )  # fmt: skip
    if torch and gpus and torch.endswith("+cpu"):
        yield Check(
            "torch", "bad", f"there is a GPU, and torch {torch} can't use it", "install the CUDA build of torch"
        )
    for gpu in gpus:
        if not gpu.bf16:
            yield Check(
                gpu.key,
                "warn",
                f"{gpu.name}: no bfloat16, and {_trap('fp16').what}",
                "bf16 is emulated there: slow, but correct",
            )
    if versions.get("flash-attn"):
        yield Check("flash-attn", "warn", _trap("flash-attention").what, "leave it unused: gemma-ops uses SDPA")
    if versions.get("deepspeed"):
        yield Check(
            "deepspeed",
            "warn",
            "with ZeRO-3 and PEFT, TRL turns reentrant checkpointing on, which corrupts gradients of E2B and E4B",
            _trap("reentrant-checkpointing").fix,
        )
    mlflow, transformers = versions.get("mlflow"), versions.get("transformers")
    if mlflow and transformers and not inside_window(transformers, "<5.18"):
        yield Check(
            "mlflow",
            "ok",
            f"{mlflow}; its transformers flavour stops at 5.17 (here {transformers}), so models are registered "
            f"as files",
        )
    if environment.get("ACCELERATE_MIXED_PRECISION", "").lower() == "fp16":
        yield Check("environment", "bad", f"ACCELERATE_MIXED_PRECISION=fp16: {_trap('fp16').what}", "unset it")
    if environment.get("TRANSFORMERS_SDPA_FORCE_GQA") == "1":
        yield Check(
            "environment",
            "warn",
            "TRANSFORMERS_SDPA_FORCE_GQA=1 sends masked attention to the slow kernel that holds every score",
            "unset it",
        )


def _trap(code: str) -> family.Trap:
    return next(trap for trap in family.TRAPS if trap.code == code)


def _ability(key: str, device: Device) -> Ability:
    from gemma_ops.planning.training_plan import measure_plan

    size = family.SIZES[key]
    plans = {}
    for weights in ("bf16", "nf4"):
        train = TrainConfig(weights=weights, max_length=2048, micro_tokens=2048, checkpointing="all", lora=LoraConfig())
        plans[weights] = measure_plan(RunConfig(model=ModelConfig(base=next(iter(size.repos))), train=train), device)
    best = next((made for made in plans.values() if made.fits != "no"), None)
    c = size.shape.counts()
    weights_bits = (c.text - c.per_layer_table) * SMALLEST.bits + c.per_layer_table * BITS[TABLE_TYPE]
    serving = weights_bits / 8 + _SERVING * GIB
    return Ability(
        size=key,
        lora=plans["bf16"].fits,
        lora_gib=plans["bf16"].total / GIB,
        qlora=plans["nf4"].fits,
        qlora_gib=plans["nf4"].total / GIB,
        tokens_per_second=best.speed.tokens_per_second if best and best.speed else None,
        serve="yes" if serving <= device.memory * GIB else "no",
        serve_gib=serving / GIB,
    )


def _pace(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _cell(fits: str, gib: float) -> str:
    return f"{fits:<5} {gib:5.1f} GiB"
