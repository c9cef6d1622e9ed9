"""The machine and software of a measurement: processor or GPU, memory, versions. Free of torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from gemma_ops import __version__
from gemma_ops.planning import devices

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "triton",
    "unsloth",
    "axolotl",
    "liger-kernel",
)


def machine(device: str) -> dict[str, Any]:
    """Return names and sizes of what the benchmark ran on; no host name, no user."""
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(devices.ram() / devices.GIB, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,power.limit", "--format=csv,noheader"]
        try:
            line = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]
            found["gpu"] = line.strip()
        except (OSError, subprocess.SubprocessError, IndexError):
            found["gpu"] = "unknown"
    return found


def package_versions() -> dict[str, str]:
    """Return the versions of installed packages that matter to speed."""
    found = {"gemma-ops": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def gpu_facts() -> devices.Device | None:
    """Return the GPU as the table of devices knows it, for its peak; None without one."""
    found = devices.present_devices()
    return found[0] if found else None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    fast = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    return f"{names[0] if names else 'unknown'} ({fast})" if fast else (names[0] if names else "unknown")
