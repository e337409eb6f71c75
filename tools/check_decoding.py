"""Decodes image files of all formats, modes, depths and orientations with known pixels, and counts what is wrong.

    python tools/check_decoding.py --number 1200

The files are those of tests/image_cases.py, in sizes and with contents that differ from round to round.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import count, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from image_cases import all_cases, verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1200, help="files to decode")
    parser.add_argument("--refused", action="store_true", help="name those that are refused as well")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for case in islice((case for seed in count() for case in all_cases(seed)), arguments.number):
        outcome, why = verdict(case)
        counts[outcome] += 1
        if outcome == "wrong" or (outcome == "refused" and arguments.refused):
            print(f"{outcome}: {case.name}: {why}")
    print(f"{counts.total()} files: {counts['right']} right, {counts['refused']} refused, {counts['wrong']} wrong")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
