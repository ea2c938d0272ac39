"""The demo's one picture."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from explora_geo.models.vit import ViT


@torch.no_grad()
def pca_colours(vit: ViT, images: Tensor, shown: int) -> NDArray[np.float32]:
    """First three principal components of the last block's patch tokens as colours.

    Args:
        vit: Backbone.
        images: Normalised images, shape (N, C, H, W); all of them define the components.
        shown: How many of the first images are coloured.

    Returns:
        Colours in [0, 1], shape (shown, h, w, 3).
    """
    patches = vit.eval()(images).patches[:, 0].float().cpu()
    height, width = (side // vit.patch_embed.patch_size for side in images.shape[-2:])
    flat = patches.flatten(0, 1).numpy()
    scores = PCA(3, random_state=0).fit_transform(flat)
    low, high = np.percentile(scores, (2, 98), axis=0)
    colours = np.clip((scores - low) / (high - low), 0, 1)
    return colours.reshape(len(patches), height, width, 3)[:shown].astype(np.float32)
