"""The precisions in which networks compute, by name. Loads nothing, because the command line lists them."""

from typing import Literal

Precision = Literal["fp32", "bf16"]
