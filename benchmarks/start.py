"""How long `fitv2 sample` takes from a cold start: seconds to the first image on disk, and to the end.

    python benchmarks/start.py --repeats 5

Each turn is a new process; what follows -- goes to `fitv2 sample`, such as `-- --precision bf16`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

COLUMNS = ("first image", "all images and the sheet")


def one_run(options: list[str]) -> tuple[float, float]:
    """Seconds of one process: to its first image, and to its end."""
    with tempfile.TemporaryDirectory() as out:
        start = time.time()
        subprocess.run(
            [sys.executable, "-m", "fitv2.cli", "sample", "--out", out, *options], check=True, stdout=sys.stderr
        )
        end = time.time()
        return min(file.stat().st_mtime for file in Path(out).iterdir()) - start, end - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, choices=range(1, 101), metavar="N", default=5)
    parser.add_argument("options", nargs="*", help="for fitv2 sample, after --")
    args = parser.parse_args()
    runs = [one_run(args.options) for _ in range(args.repeats)]
    for name, seconds in zip(COLUMNS, zip(*runs, strict=True), strict=True):
        print(f"{name}: {median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
