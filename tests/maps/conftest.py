"""Small scenes, and a local model whose map is known."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from torch import Tensor

from explora_geo.maps.model import MapModel, open_model
from explora_geo.maps.scene import Scene
from explora_geo.trainers import SegmentationTask, save_task
from tests.http_ranges import Ranges, write_cog

BANDS = ('red', 'green', 'blue')


@pytest.fixture
def write_scene(tmp_path: Path) -> Callable[..., Path]:
    """Write a scene of random or given pixels."""

    def write(
        height: int = 100,
        width: int = 132,
        pixels: np.ndarray | None = None,
        name: str = 'scene.tif',
        **kwargs: Any,
    ) -> Path:
        if pixels is None:
            pixels = np.random.default_rng(0).integers(1, 255, (3, height, width)).astype(np.uint8)
        profile = {
            'driver': 'GTiff',
            'count': len(pixels),
            'height': pixels.shape[1],
            'width': pixels.shape[2],
            'dtype': pixels.dtype,
            'crs': 'EPSG:32631',
            'transform': from_origin(500000, 5000000, 10, 10),
            **kwargs,
        }
        with rasterio.open(tmp_path / name, 'w', **profile) as target:
            target.write(pixels)
        return tmp_path / name

    return write


@pytest.fixture
def model_file(small_names: None, tmp_path: Path) -> Path:
    """File of a segmentation model of three classes for 32 px images."""
    task = SegmentationTask(
        model='vit_tiny_patch8_32', tuning='full', num_classes=3, head='upernet', head_channels=8
    )
    task.data = {
        'bands': list(BANDS),
        'mean': [120.0, 110.0, 100.0],
        'std': [50.0, 45.0, 40.0],
        'classes': ['field', 'forest', 'water'],
        'colors': [[200, 180, 90], [20, 110, 40], [30, 80, 200]],
    }
    save_task(tmp_path / 'model.safetensors', task.eval())
    return tmp_path / 'model.safetensors'


@pytest.fixture
def model(model_file: Path) -> MapModel:
    """That model."""
    return open_model(model_file)


@pytest.fixture
def local(model: MapModel) -> MapModel:
    """A model whose probabilities at a pixel depend on that pixel alone."""
    weight = torch.randn(3, 3)

    def function(image: Tensor) -> Tensor:
        return torch.einsum('kc,bchw->bkhw', weight, image).softmax(1)

    return model._replace(function=function)


@pytest.fixture
def whole() -> Callable[[Scene, MapModel], Tensor]:
    """Prediction on the whole scene at once."""

    def predict(scene: Scene, model: MapModel) -> Tensor:
        with rasterio.open(scene.path) as source:
            pixels = torch.from_numpy(source.read(list(scene.indices)).astype(np.float32))
        mean, std = (torch.tensor(model.data[k]).view(-1, 1, 1) for k in ('mean', 'std'))
        assert model.function is not None
        return model.function(((pixels - mean) / std)[None])[0]

    return predict


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Ranges]:
    """An HTTP server of a Cloud-Optimized GeoTIFF of 256 px, `scene.tif`, also inside `scenes.zip`."""
    (folder := tmp_path / 'www').mkdir()
    write_cog(folder / 'scene.tif', 256)
    with zipfile.ZipFile(folder / 'scenes.zip', 'w') as archive:
        archive.write(folder / 'scene.tif', 'scene.tif')
    with Ranges(folder) as ranges:
        yield ranges
