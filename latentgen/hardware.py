"""Which device and which number format to compute in on this machine, the names people give them, and compiling."""

from __future__ import annotations

from collections.abc import Callable

import torch

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}

# One entry a device type that can be absent: is there such a device here?
_PRESENT: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "xpu": lambda: hasattr(torch, "xpu") and torch.xpu.is_available(),
}


def default_device() -> torch.device:
    """The fastest device of this machine: CUDA (ROCm included), else MPS, else XPU, else the CPU."""
    return torch.device(next((kind for kind, present in _PRESENT.items() if present()), "cpu"))


def default_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where `device` multiplies it in hardware, else float32.

    A CPU without AMX or AVX512-BF16 emulates bfloat16 hundreds of times slower than float32, so it must show one of
    the two; float16 is never chosen, since the VAEs of the wild overflow in it.
    """
    device = torch.device(device)
    has_bfloat16 = {"cpu": _cpu_has_bfloat16, "cuda": _cuda_has_bfloat16}.get(device.type, lambda _: False)
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def parse_device(device: str | torch.device | None) -> torch.device:
    """Turn a name such as "cpu" or "cuda:1" into a device that exists; None and "auto" give `default_device()`.

    Raises:
        ValueError: The name means nothing to torch, or this machine has no such device.
    """
    if device is None or device == "auto":
        return default_device()
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is not known; use auto, cpu, cuda, cuda:0, mps or xpu") from error
    if found.type not in ("cpu", *_PRESENT) or (found.type == "cpu" and found.index):
        raise ValueError(f"device {str(found)!r} is not supported; use auto, cpu, {', '.join(_PRESENT)}, or cuda:1")
    if found.type in _PRESENT and not _PRESENT[found.type]():
        raise ValueError(f"device {str(found)!r} is not available on this machine; use {str(default_device())!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(found)!r} does not exist; this machine has {torch.cuda.device_count()} of them")
    return found


def parse_dtype(dtype: str | torch.dtype | None, device: str | torch.device) -> torch.dtype:
    """Turn a name such as "bf16" into a floating-point dtype; None and "auto" give `default_dtype(device)`.

    Raises:
        ValueError: Neither a known name nor a floating-point torch.dtype.
    """
    if dtype is None or dtype == "auto":
        return default_dtype(device)
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if found is None:
        raise ValueError(f"dtype {dtype!r} is not known; use auto, float32, float16 or bfloat16")
    return found


def require_compiler(device: str | torch.device) -> None:
    """Compile something small, so that a machine that cannot is told so before any long work (takes seconds).

    Raises:
        ValueError: `torch.compile` does not work here: no C++ compiler for the CPU, no Triton for a GPU.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(8, device=device))
    except Exception as error:  # each back end of the compiler has its own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"torch.compile does not work on this machine ({reason}): install a C++ compiler such as g++ (on a GPU "
            "Triton too), or turn compiling off (loop.compile=false in a training)"
        ) from error


def _cuda_has_bfloat16(device: torch.device) -> bool:
    # Emulated bfloat16 (before Ampere) is slower than float32.
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8


def _cpu_has_bfloat16(_: torch.device) -> bool:
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)
