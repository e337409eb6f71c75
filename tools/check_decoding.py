"""Decodes image files of all formats, modes, depths and orientations with known pixels, and counts what is wrong.

    python tools/check_decoding.py --number 1200

The files are those of tests/image_files.py, in sizes and with contents that differ from round to round.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from itertools import count, islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fitv2.data.images import UnreadableImage, decode
from image_files import all_cases, verdict


def decoded(content: bytes) -> np.ndarray | str:
    try:
        return np.asarray(decode(io.BytesIO(content))).astype(float)
    except UnreadableImage as error:
        return str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1200, help="files to decode")
    parser.add_argument("--refused", action="store_true", help="name those that are refused as well")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for case in islice((case for seed in count() for case in all_cases(seed)), arguments.number):
        outcome, why = verdict(case, decoded)
        counts[outcome] += 1
        if outcome == "wrong" or (outcome == "refused" and arguments.refused):
            print(f"{outcome}: {case.name}: {why}")
    print(f"{counts.total()} files: {counts['right']} right, {counts['refused']} refused, {counts['wrong']} wrong")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
