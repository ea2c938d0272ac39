"""Weights that ship with the package."""

from pathlib import Path

from torchvision.models._api import Weights, WeightsEnum

_FILES = Path(__file__).parent / 'files'


def _no_transform(sample: dict) -> dict:  # type: ignore[type-arg]
    """Return the sample as it is: the datamodules normalise by band."""
    return sample


class ViTTiny8_Weights(WeightsEnum):
    """ViT-Ti/8 at 64 px for experiments at the size of EuroSAT tiles."""

    TINY_IMAGENET_MAE = Weights(
        url=(_FILES / 'vit_tiny_patch8_64_mae_tiny_imagenet.safetensors').as_uri(),
        transforms=_no_transform,
        meta={
            'model': 'vit_tiny_patch8_64',
            'bands': ('red', 'green', 'blue'),
            'publication': 'https://arxiv.org/abs/2111.06377',
            'dataset': 'Tiny ImageNet (202 classes, 20,200 natural images), labels not used',
            'licence': 'MIT',
            'learned_position': False,
        },
    )
