"""Writes tests/data/metrics.npz: features of real and of generated garments, and what others' code makes of them.

Needs torchmetrics, prdc, scikit-learn and torch-fidelity (0.4.0 imports torchvision, of which nothing runs here). The
file says with which versions it was made. Features and logits are float32; all is computed from them in float64.
"""

# pyright: reportMissingImports=false

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from fitv2.checkpoints.model_folder import load_pretrained
from fitv2.data.fashion import bundled
from fitv2.data.preprocessing import to_tensor
from fitv2.evaluation.extractors import GarmentExtractor, canvas
from fitv2.evaluation.generated import SizeSpec, balanced_specs
from fitv2.evaluation.inputs import balanced_subset
from fitv2.sampling.generate import generate
from fitv2.sampling.spec import Sampling

OUT = Path(__file__).parent.parent / "tests/data/metrics.npz"
NUMBER = 300
SUBSETS, SUBSET_SIZE = 100, NUMBER // 2
PACKAGES = ("torch", "numpy", "scipy", "torchmetrics", "prdc", "scikit-learn", "torch-fidelity")


def golden(generated: Tensor, real: Tensor, logits: Tensor) -> dict[str, float]:
    """By who computed it and what; generated, real: (N, F), logits: (N, K) of the generated ones, all float64."""
    means, covariances = zip(*((x.mean(0), x.T.cov()) for x in (generated, real)), strict=True)
    root = np.real(sqrtm((covariances[0] @ covariances[1]).numpy()))
    trace = float(sum(covariance.trace() for covariance in covariances)) - 2 * np.trace(root)
    found = {
        "torchmetrics.fd": _compute_fid(means[0], covariances[0], means[1], covariances[1]),
        "scipy.fd": (means[0] - means[1]).square().sum() + trace,
        "torchmetrics.discrepancy": poly_mmd(real, generated),
    }
    # The subsets that `kid_of_subsets` draws with the seed 0, of the generated ones first.
    generator = torch.Generator().manual_seed(0)
    pairs = [
        [x[torch.randperm(NUMBER, generator=generator)[:SUBSET_SIZE]] for x in (generated, real)]
        for _ in range(SUBSETS)
    ]
    values = torch.stack([poly_mmd(b, a) for a, b in pairs])
    found |= {"torchmetrics.kid": values.mean(), "torchmetrics.kid_std": values.std(unbiased=False)}
    for k in (3, 5):
        shares = compute_prdc(real.numpy(), generated.numpy(), nearest_k=k)
        found |= {f"prdc.{name}_{k}": value for name, value in shares.items()}
    statistics = map(fid_features_to_statistics, (generated, real))
    (found["torch-fidelity.fd"],) = fid_statistics_to_metric(*statistics, verbose=False).values()
    kernel = {
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1,
    }
    found["torch-fidelity.discrepancy"] = kernel_mmd(generated.numpy(), real.numpy(), **kernel)
    precision, recall = calculate_precision_recall_full(generated, real, neighborhood=3)
    found |= {"torch-fidelity.precision_3": precision, "torch-fidelity.recall_3": recall}
    score, _ = isc_features_to_metric(logits, splits=1).values()
    return {name: float(value) for name, value in (found | {"torch-fidelity.classifier_score": score}).items()}


classifier, garments = GarmentExtractor("cpu").network, bundled()
pretrained = load_pretrained("builtin:fashion")
specs = balanced_specs(pretrained, NUMBER, SizeSpec(), 0, 1)
real = [to_tensor(garments.images[i][None]) for i in balanced_subset(garments.labels, NUMBER)]
with torch.inference_mode():
    made, seen = (
        classifier.trunk(torch.cat([canvas(latent[None].clamp(-1, 1)) for latent in latents]))
        for latents in (generate(pretrained.model, specs, Sampling(steps=8)), real)
    )
    logits = classifier.head(made)
figures = golden(made.double(), seen.double(), logits.double())
about = json.dumps({"versions": {package: version(package) for package in PACKAGES}, "golden": figures}, indent=1)
np.savez_compressed(OUT, generated=made.numpy(), real=seen.numpy(), logits=logits.numpy(), about=np.array(about))
print(about)
print(f"{OUT}: {OUT.stat().st_size / 1e3:.0f} kB")
