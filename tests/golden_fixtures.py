"""The numeric fixtures in tests/golden: recorded inputs and outputs of the authors' code at tiny sizes.

A fixture is called by its number, "f01". Tensors are named weights.<key>, in.<name> and out.<name>; index.json holds
the authors' constructor arguments, per output the largest absolute difference that counts as equal, and the names of
the parameters whose gradient norms f09 lists.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import fitv2

FOLDER = Path(__file__).parent / "golden"
INDEX = json.loads((FOLDER / "index.json").read_text())


@cache
def load(name: str) -> dict[str, Tensor]:
    """All tensors of a fixture."""
    (path,) = FOLDER.glob(f"{name}_*.safetensors")
    return load_file(path)


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict of a fixture."""
    return {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}


def models(name: str) -> list[str]:
    """Names of the models of a fixture."""
    return list(INDEX["kwargs"][name])


def kwargs(name: str, model: str = "fitv2") -> dict:
    """The authors' constructor arguments of a model of a fixture."""
    return INDEX["kwargs"][name][model]


def official_model(name: str, model: str = "fitv2") -> torch.nn.Module:
    """A model of a fixture with its weights, through the public conversion."""
    return fitv2.from_official(weights(load(name)), **kwargs(name, model))


def unpad(x_BNC: Tensor, mask_BN: Tensor) -> Tensor:
    """(B, N, C) with padding to packed (T, C)."""
    return x_BNC[mask_BN.bool()]


def batch_of(tensors: dict[str, Tensor], call: str, x: str = "x") -> fitv2.TokenBatch:
    """The packed batch of a call's tensors in.<call>.x, .mask and .size."""
    x_TC = unpad(tensors[f"in.{call}.{x}"], tensors[f"in.{call}.mask"])
    return fitv2.TokenBatch(x_TC, tensors[f"in.{call}.size"][:, 0])


def assert_matches(name: str, output: str, actual: Tensor, expected: Tensor | None = None) -> None:
    """`actual` is out.<output> of the fixture (or `expected`, a part of it) within the fixture's tolerance."""
    expected = load(name)[f"out.{output}"] if expected is None else expected
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item()
    tolerance = INDEX["tolerances"][name][f"out.{output}"]
    assert difference <= tolerance, f"{name} {output}: differs by {difference:.3g}, allowed {tolerance:.3g}"
