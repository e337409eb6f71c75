"""Writes the 500 pictures that the tests measure the classifier on: the first 50 of each class of the test split.

Needs the Debian package dataset-fashion-mnist (or a folder with the upstream files as the only argument).
"""

import sys
from pathlib import Path

import numpy as np

from fitv2.data.fashion import CLASS_NAMES, full

test = full("test", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
chosen = np.sort(np.concatenate([np.flatnonzero(test.labels == c)[:50] for c in range(len(CLASS_NAMES))]))
out = Path(__file__).parent.parent / "tests/data/fashion-test-500.npz"
out.parent.mkdir(exist_ok=True)
np.savez_compressed(
    out,
    hw=np.array([test.pictures[i].shape for i in chosen], np.uint8),
    pixels=np.concatenate([test.pictures[i].ravel() for i in chosen]),
    labels=test.labels[chosen].astype(np.uint8),
)
print(f"{out}: {len(chosen)} pictures, {out.stat().st_size / 1e6:.2f} MB")
