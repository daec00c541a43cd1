"""`make gpu-check` without a GPU: the same code at a tiny size, also on a machine without this project's packages."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "run.py"
NOT_ON_THE_GPU_MACHINE = (
    "ray",
    "av",
    "open_clip",
    "diffusers",
    "tyro",
    "webdataset",
    "httpx2",
    "pydantic",
    "rensa",
    "ftfy",
)
IMPORTED_WITHOUT_THEM = (
    "train.generator.task", "train.captioner.task", "train.compressors.task", "train.compressors.pretrained",
    "train.sampling.sampler", "packing.loader.loader", "recaption.captioners.registry",
    *(f"recaption.captioners.backends.{name}" for name in ("vlm", "git", "mplug2_model", "frozenbilm_model")),
    "recaption.captioners.videococa.captioner",
)  # fmt: skip
WITHOUT_THEM = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_ON_THE_GPU_MACHINE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
sys.path.insert(0, {str(RUN.parents[2])!r})
import importlib, runpy
for module in {IMPORTED_WITHOUT_THEM!r}:
    importlib.import_module(module)
sys.argv = sys.argv[1:]
sys.path[1] = {str(RUN.parent)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def check(*sections: str, without_packages: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-c", WITHOUT_THEM) if without_packages else ()), str(RUN)]
    return subprocess.run(
        [*command, "--device", "cpu", "--small", "--no-compile", "--wheels", "none", "--only", *sections],
        capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def test_sections_that_need_no_package_of_this_project_run_and_the_others_say_what_is_missing():
    done = check("attention", "dit", "sampling", "captioning", "vae", without_packages=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = dict(line.split(" | ")[:2] for line in done.stdout.splitlines() if line.startswith("| "))
    assert table["| attention loop self"] == table["| DiT bf16"] == table["| sampling"] == "right"
    assert table["| sampling fp32 as on a CPU"] == "right"
    assert table["| attention varlen self bfloat16"] == "not here"
    assert table["| captioning"] == table["| vae"] == "not here"
    assert "needs the package diffusers" in done.stdout
    assert "0 wrong" in done.stdout


@pytest.mark.slow
def test_the_whole_check_runs_at_a_tiny_size():
    done = check("attention", "dit", "training", "sampling", "captioning", "vae")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong" in done.stdout
    assert "losses differ from those of an uninterrupted run by at most 0.0e+00" in done.stdout


def test_a_wrong_row_and_a_section_that_fails_are_rows_and_exit_code_1(tmp_path):
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import builtins, sys\n"
        "class Break:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'check_dit':\n"
        "            raise ValueError('planted')\n"
        "sys.meta_path.insert(0, Break())\n"
    )
    done = check("attention", "dit", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "| dit | WRONG |" in done.stdout
    assert "ValueError: planted" in done.stdout
    assert "| attention loop self | right |" in done.stdout


def test_without_a_gpu_it_says_what_to_pass():
    done = subprocess.run(
        [sys.executable, str(RUN)], capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 2
    assert "--device cpu --small" in done.stdout


def test_carried_wheels_are_on_the_path_where_the_machine_lacks_the_package(tmp_path):
    for name in ("not_installed_anywhere", "torch"):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "answer = 42")
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from carried import unpack_wheels; "
        "print(unpack_wheels(pathlib.Path(sys.argv[2]))); import not_installed_anywhere as it; print(it.answer)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(RUN.parent), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["['not_installed_anywhere']", "42"]
