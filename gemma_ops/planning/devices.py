"""GPUs by name, and what is plugged into this machine: memory, arithmetic, bandwidth, price. Free of torch.

Peaks and bandwidths are the makers' data sheets (dense bf16, without sparsity). `memory` is what a process can get, as
`torch.cuda.get_device_properties(0).total_memory` reports it: less than the box says, because of ECC and the driver.
`sustained` is the share of the peak that large matrix products really reach, where power or clocks limit it. Prices are
on-demand rates of one published list each, with its date; they differ by a factor of two between providers.
"""

from __future__ import annotations

import difflib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gemma_ops.errors import ConfigError

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """One kind of machine to train on."""

    key: str
    name: str
    memory: float
    """Usable memory in GiB."""
    peak: float
    """Dense bf16 matrix products, 10^12 floating-point operations per second; float32 where bf16 is emulated, 0 if
    unknown."""
    sustained: float
    """Share of the peak that large products reach."""
    bandwidth: float
    """Memory bandwidth, 10^9 bytes per second."""
    dollars: float | None
    """US dollars per hour, on demand; None where nobody rents it by the hour."""
    priced: str = "published lists, 2026-05"
    """Source and date of the price."""
    bf16: bool = True
    """Whether it has bfloat16 tensor cores and attention kernels. Without, bf16 is emulated at float32 speed, and
    attention holds its score matrix; float16 is no way out, because Gemma 4 overflows in it."""
    cuda: bool = True
    matches: tuple[str, ...] = ()
    """Spellings of the name in `nvidia-smi`: substrings, the most telling first."""

    @property
    def hopper(self) -> bool:
        """True if the GPU is of the generation that attention with heads of 512 has kernels for."""
        return self.key in ("h100", "h200")

    @property
    def groups(self) -> bool:
        """True if PyTorch runs a mixture's grouped expert products there without reading their sizes back to the
        host."""
        return self.hopper or self.key == "b200"


DEVICES: dict[str, Device] = {
    device.key: device
    for device in (
        Device(
            "t4", "T4 16 GB", 14.6, 8.1, 0.5, 320, 0.526, "AWS g4dn.xlarge, 2026-05", bf16=False, matches=("Tesla T4",)
        ),
        Device("l4", "L4 24 GB", 22.0, 121, 0.48, 300, 0.78, matches=("NVIDIA L4",)),
        Device("a10", "A10 24 GB", 22.1, 125, 0.55, 600, 1.29, "Lambda, 2026-09", matches=("A10",)),
        Device("rtx-3090", "RTX 3090 24 GB", 23.6, 71, 0.85, 936, 0.39, matches=("RTX 3090",)),
        Device("rtx-4090", "RTX 4090 24 GB", 23.5, 165, 0.90, 1008, 0.60, matches=("RTX 4090",)),
        Device("rtx-5090", "RTX 5090 32 GB", 31.3, 209, 0.90, 1792, 1.22, matches=("RTX 5090",)),
        Device(
            "a100-40",
            "A100 40 GB",
            39.4,
            312,
            0.80,
            1555,
            1.99,
            "Lambda, 2026-09",
            matches=("A100-SXM4-40GB", "A100-PCIE-40GB"),
        ),
        Device("l40s", "L40S 48 GB", 44.4, 362, 0.55, 864, 1.40, matches=("L40S",)),
        Device(
            "a100-80",
            "A100 80 GB",
            79.2,
            312,
            0.80,
            2039,
            1.79,
            "RunPod, 2026-11",
            matches=("A100-SXM4-80GB", "A100 80GB", "A100-PCIE-80GB"),
        ),
        Device("h100", "H100 80 GB", 79.1, 989, 0.70, 3350, 3.99, "RunPod, 2026-11", matches=("H100",)),
        Device("rtx-pro-6000", "RTX PRO 6000 96 GB", 94.9, 503, 0.80, 1792, 1.57, matches=("RTX PRO 6000",)),
        Device("h200", "H200 141 GB", 139.8, 989, 0.80, 4800, 4.59, "RunPod, 2026-10", matches=("H200",)),
        Device("b200", "B200 180 GB", 178.3, 2250, 0.70, 7700, 6.79, "RunPod, 2026-10", matches=("B200",)),
    )
}
"""Devices by command-line key, smallest memory first."""

KEYS = (*DEVICES, "cpu")


def get_device(key: str) -> Device:
    """Return a device by its key; `cpu` is this machine's processor. Raises ConfigError that lists the keys."""
    if key == "cpu":
        return processor()
    device = DEVICES.get(key)
    if device:
        return device
    close = difflib.get_close_matches(key.casefold().replace(" ", "-"), KEYS, n=1, cutoff=0.5)
    raise ConfigError(
        f"unknown device {key!r}" + (f"; did you mean {close[0]}?" if close else ""), f"one of: {', '.join(KEYS)}"
    )


def present_devices() -> list[Device]:
    """Return the GPUs of this machine as `nvidia-smi` names them, best first; empty without a driver.

    A card that is not in the table keeps its own name and memory, with the speed and price of nothing: they are
    unknown.
    """
    devices = []
    for line in _asked_of_driver("name,memory.total"):
        name, _, memory = line.rpartition(",")
        if memory.strip().isdigit():
            devices.append(match_device(name.strip(), int(memory) / 1024))
    return sorted(devices, key=lambda device: -device.memory)


def free_gpu_memory() -> int | None:
    """Return the free bytes on the GPU with the most of them; None without a GPU."""
    found = [line.strip() for line in _asked_of_driver("memory.free")]
    return max((int(line) << 20 for line in found if line.isdigit()), default=None)


def _asked_of_driver(fields: str) -> list[str]:
    """Return one line per GPU with these fields of `nvidia-smi`; none without a driver."""
    try:
        return subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=5, check=True,
        ).stdout.splitlines()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []


def match_device(name: str, memory: float) -> Device:
    """Return the device that a driver calls `name` with `memory` GiB; one that is not in the table has no known
    speed."""
    for device in DEVICES.values():
        # Names such as A10 begin others (A100): the memory must agree too.
        if any(pattern in name for pattern in device.matches) and abs(device.memory - memory) < 0.12 * memory:
            return device
    return Device(name.casefold().replace(" ", "-"), name, 0.97 * memory, 0.0, 0.0, 0.0, None)


def processor() -> Device:
    """Return this machine's CPU: its memory, and a rough speed by cores (matrix extensions make bf16 fast where they
    exist)."""
    cores = os.cpu_count() or 1
    flags = _read("/proc/cpuinfo")
    # Measured per core with torch 2.13, 10^12/s: bf16 on AMX and on AVX-512 with bf16 0.33; without it half of that.
    per_core = 0.33 if "amx_bf16" in flags or "avx512_bf16" in flags else 0.16 if "avx512f" in flags else 0.03
    return Device(
        "cpu",
        f"CPU, {cores} core{'s' if cores > 1 else ''}",
        ram() / GIB,
        per_core * cores,
        0.5,
        10.0 * cores,
        None,
        cuda=False,
    )


def ram() -> int:
    """Return the bytes of memory this process may use: the machine's, or less if its control group says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(file).strip()
        if text.isdigit():
            return min(total, int(text))
    return total


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
