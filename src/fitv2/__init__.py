"""fitv2: diffusion transformers for images of any size and aspect ratio (FiTv2, arXiv 2410.13925)."""

from importlib import import_module

from .system.openmp import share_cores

share_cores()  # Before torch is imported, for systems where that matters.

# Where each public name lives: the module, or module:name for an alias. Loaded on first use, so that `fitv2 --help`
# does not wait for torch.
_HOMES = {
    "TokenBatch": "tokens",
    "FiT": "model.transformer",
    "FiTConfig": "model.config",
    "FiTv1Config": "model.config",
    "DiT": "model.dit",
    "DiTConfig": "model.config",
    "SiTConfig": "model.config",
    "GridTransformer": "model.dit:DiT",
    "GridConfig": "model.config:SiTConfig",
    "RopeScheme": "model.config",
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
    module, _, own_name = _HOMES[name].partition(":")
    return getattr(import_module(f".{module}", __name__), own_name or name)
