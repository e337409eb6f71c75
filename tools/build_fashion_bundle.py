"""Writes the trimmed garments that ship: 10 000 training images for the package, 500 test images for its tests.

The first 1 000, and the first 50, of each class. Needs the Debian package dataset-fashion-mnist (or a folder with the
upstream files as the only argument).
"""

import sys
from pathlib import Path

import numpy as np

from fitv2.data.fashion import CLASS_NAMES, Fashion, full

ROOT = Path(__file__).parent.parent


def write(garments: Fashion, per_class: int, out: Path) -> None:
    """The first `per_class` images of each class, in the order of the set, as fitv2.data.fashion reads them."""
    first = [np.flatnonzero(garments.labels == label)[:per_class] for label in range(len(CLASS_NAMES))]
    chosen = np.sort(np.concatenate(first))
    out.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        out,
        hw=np.array([garments.images[i].shape for i in chosen], np.uint8),
        pixels=np.concatenate([garments.images[i].ravel() for i in chosen]),
        labels=garments.labels[chosen].astype(np.uint8),
    )
    print(f"{out}: {len(chosen)} images, {out.stat().st_size / 1e6:.2f} MB")


folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
write(full("train", folder), 1000, ROOT / "src/fitv2/data/fashion-10k.npz")
write(full("test", folder), 50, ROOT / "tests/data/fashion-test-500.npz")
