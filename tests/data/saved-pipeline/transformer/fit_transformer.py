from fitv2.adapters.transformer import FiTTransformer2DModel

__all__ = ["FiTTransformer2DModel"]
