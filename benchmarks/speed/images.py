"""Real images for timed steps."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from explora_geo.datamodules.statistics import resolve
from explora_geo.models.tokenizers import RGB


def read_images(folder: Path, count: int, size: int) -> Tensor:
    """The first images of every class in turn, resized and normalised.

    Args:
        folder: Folder of class folders of JPEG files.
        count: Number of images B.
        size: Side, pixels.

    Returns:
        Images, shape (B, 3, H, W).

    Raises:
        FileNotFoundError: If the folder holds fewer images.
    """
    classes = [sorted(f.glob('*.jpg')) for f in sorted(folder.iterdir()) if f.is_dir()]
    files = [path for row in zip(*classes, strict=False) for path in row][:count]
    if len(files) < count:
        raise FileNotFoundError(f'{folder} holds {len(files)} JPEG images in class folders, {count} needed')
    pixels = []
    for path in files:
        image = Image.open(path).convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
        pixels.append(torch.from_numpy(np.array(image)))
    images = torch.stack(pixels).permute(0, 3, 1, 2).float()
    mean, std = (resolve('imagenet', RGB, name)[:, None, None] for name in ('mean', 'std'))
    return (images - mean) / std
