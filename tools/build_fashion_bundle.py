"""Writes the bundled 10 000 pictures: the first 1 000 of each class of the training split, trimmed.

Needs the Debian package dataset-fashion-mnist (or a folder with the upstream files as the only argument).
"""

import sys
from pathlib import Path

import numpy as np

from fitv2.data.fashion import CLASS_NAMES, full

train = full("train", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
chosen = np.sort(np.concatenate([np.flatnonzero(train.labels == c)[:1000] for c in range(len(CLASS_NAMES))]))
out = Path(__file__).parent.parent / "src/fitv2/data/fashion-10k.npz"
np.savez_compressed(
    out,
    hw=np.array([train.pictures[i].shape for i in chosen], np.uint8),
    pixels=np.concatenate([train.pictures[i].ravel() for i in chosen]),
    labels=train.labels[chosen].astype(np.uint8),
)
print(f"{out}: {len(chosen)} pictures, {out.stat().st_size / 1e6:.2f} MB")
