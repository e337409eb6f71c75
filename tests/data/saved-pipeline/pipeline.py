from fitv2.adapters.pipeline import FiTPipeline

__all__ = ["FiTPipeline"]
