import numpy as np
import torch

from explora_geo.demo.picture import pca_colours
from explora_geo.models import create_vit


def test_features_of_like_patches_have_like_colours() -> None:
    vit = create_vit('vit_tiny_patch8_32')
    vit.pos_embed.data.zero_()
    image = torch.randn(4, 3, 32, 32)
    image[0, :, :8, :8] = image[0, :, 8:16, 8:16]
    colours = pca_colours(vit, image, shown=2)
    assert colours.shape == (2, 4, 4, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    same = np.abs(colours[0, 0, 0] - colours[0, 1, 1]).max()
    other = np.abs(colours[0, 0, 0] - colours[0, 2, 3]).max()
    assert same < 1e-4 < other
