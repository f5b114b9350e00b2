"""Devices and dtypes by name and by default."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentgen import hardware


def test_defaults_compute_on_this_machine() -> None:
    device = hardware.default_device()
    dtype = hardware.default_dtype(device)
    assert dtype in (torch.float32, torch.bfloat16)
    product = torch.ones(2, 2, device=device, dtype=dtype) @ torch.ones(2, 2, device=device, dtype=dtype)
    assert product.sum().item() == 8


def test_bfloat16_needs_hardware_that_shows_it() -> None:
    flags = ("avx512_bf16", "amx_bf16", "amx_tile")
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            shown = set(file.read().split())
    except OSError:
        pytest.skip("only Linux tells what the CPU can do")
    expected = torch.bfloat16 if shown & set(flags) else torch.float32
    assert hardware.default_dtype("cpu") is expected
    assert hardware.default_dtype("mps") is torch.float32


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("half", torch.float16), ("bf16", torch.bfloat16), (torch.float64, torch.float64)],
)
def test_dtypes_have_names(name: object, dtype: torch.dtype) -> None:
    assert hardware.parse_dtype(name, "cpu") is dtype


def test_nothing_and_auto_are_the_defaults() -> None:
    for name in (None, "auto"):
        device = hardware.parse_device(name)
        assert device == hardware.default_device()
        assert hardware.parse_dtype(name, device) is hardware.default_dtype(device)
    assert hardware.parse_device("cpu") == hardware.parse_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["float8", 32, torch.int64, ""])
def test_unknown_dtypes_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="use auto, float32, float16 or bfloat16"):
        hardware.parse_dtype(name, "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "xpu:77", 3.5, "meta", "xla", "hpu", "cpu:3"])
def test_devices_that_are_not_there_are_refused(name: object) -> None:
    with pytest.raises(ValueError, match="device"):
        hardware.parse_device(name)


@pytest.mark.parametrize("compiler", ["g++", "/nowhere/g++"])
def test_a_machine_that_cannot_compile_is_told_so(tmp_path: Path, compiler: str) -> None:
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")
    code = "from latentgen.hardware import require_compiler; require_compiler('cpu')"
    own = os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=False)
    if compiler == "g++":
        assert done.returncode == 0, done.stderr
    else:
        assert "ValueError: torch.compile does not work on this machine" in done.stderr.splitlines()[-1]
        assert "install a C++ compiler" in done.stderr.splitlines()[-1]
