"""The one place that knows both TorchGeo lines."""

try:
    from torchgeo.tasks import BaseTask  # TorchGeo 0.10
except ImportError:
    from torchgeo.trainers import BaseTask  # TorchGeo 0.8 and 0.9

__all__ = ['BaseTask']
