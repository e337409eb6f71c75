"""fitv2: diffusion transformers for images of any size and aspect ratio (FiTv2, arXiv 2410.13925)."""

from importlib import import_module

from .openmp import share_cores

share_cores()  # Before torch is imported, for systems where that matters.

# Where each public name lives; loaded on first use, so that `fitv2 --help` does not wait for torch.
_HOMES = {
    "TokenBatch": "tokens",
    "FiT": "model.transformer",
    "FiTConfig": "model.config",
    "FiT1Config": "model.fit1",
    "GridTransformer": "model.grid",
    "GridConfig": "model.grid",
    "DiTConfig": "model.grid",
    "RopeScheme": "model.rope",
    "preset": "model.presets",
    "FiTPipeline": "adapters.pipeline",
    "FiTTransformer2DModel": "adapters.transformer",
    "from_official": "checkpoints.official",
    "to_official": "checkpoints.official",
    "official_kwargs": "checkpoints.official",
}
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'fitv2' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
