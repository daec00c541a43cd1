"""The GPU paths on a real GPU, as one table: `make gpu-check`.

    python tests/gpu_check/run.py                         # every section; exit 1 if a row is wrong
    python tests/gpu_check/run.py --only attention dit    # some of them
    python tests/gpu_check/run.py --device cpu --small    # the same code at a tiny size, without a GPU

Needs a checkout, torch 2.11 or newer and what comes with transformers; no installation of this project. Wheels in
tests/gpu_check/wheels (make gpu-check-wheels) are unpacked and put on the path for what the machine lacks. What needs a
package or a GPU that is not there is a row `not here`; a section that fails is a row too, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from carried import unpack_wheels  # noqa: E402
from table import NOT_HERE, Check, Size, as_markdown  # noqa: E402

SECTIONS = ("attention", "dit", "training", "sampling", "captioning", "vae")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a machine without a GPU")
    parser.add_argument(
        "--no-compile", action="store_true", help="without torch.compile, which takes a minute on a CPU"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--wheels", type=Path, default=FOLDER / "wheels")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here; --device cpu --small runs the same code at a tiny size")
        return 2
    carried = unpack_wheels(options.wheels)
    check = Check(device, Size.small() if options.small else Size.full(), compiles=not options.no_compile)
    start = time.perf_counter()
    for name in SECTIONS:
        if name in options.only:
            check.section(name, _section(name))
    seconds = time.perf_counter() - start
    print()
    text = "\n".join(
        [
            f"{_machine(device)}; torch {torch.__version__}, Python {platform.python_version()}"
            f"{', carried: ' + ' '.join(carried) if carried else ''}; {seconds:.0f} s",
            "",
            as_markdown(check.rows),
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    wrong = [row for row in check.rows if row.is_wrong]
    absent = sum(row.status == NOT_HERE for row in check.rows)
    print(f"\n{len(check.rows) - len(wrong) - absent} rows right, {len(wrong)} wrong, {absent} not here")
    return 1 if wrong else 0


def _section(name: str) -> Callable[[Check], None]:
    """The function of a section; imported when it is its turn, so that a broken import is a row of this section only."""

    def run(check: Check) -> None:
        module = __import__(f"check_{name}")
        module.run(check)

    return run


def _machine(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device.type} ({platform.machine()})"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


if __name__ == "__main__":
    sys.exit(main())
