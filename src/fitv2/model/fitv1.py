"""FiT, the predecessor (arXiv 2402.12376), as a relative of FiTv2 that differs in parts only.

It has no normalisation of queries and keys, a SwiGLU of the full width, its own AdaLN in every block, and two outputs
per number: the noise, and where its variance lies in its range. It is trained by diffusion (`fitv2.diffusion`), and its
time is the integer step of 1000. The authors' padding has no counterpart: packed tokens give what real tokens get.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import FiTConfig, Modulation, Prediction


@dataclass(frozen=True, kw_only=True)
class FiTv1Config(FiTConfig):
    """The configuration of FiT; with other values, of what lies between it and FiTv2 (Table II of FiTv2).

    The model takes t (B,) as steps 0 to 999, whole or between. The authors' commit caps it at 1.0, which makes all
    steps but the first alike; clamp it to do the same.
    """

    qk_norm: bool = False
    modulation: Modulation = "full"
    prediction: Prediction = "epsilon"

    @property
    def mlp_hidden(self) -> int:
        """Hidden width of SwiGLU."""
        return int(self.width * self.mlp_ratio)
