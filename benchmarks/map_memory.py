"""How much memory a map of a very large scene takes."""

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from explora_geo.maps import MapOptions, make_map
from explora_geo.maps.model import open_model
from explora_geo.maps.scene import Scene
from explora_geo.trainers import SegmentationTask, save_task

BANDS = (*(f'B{i:02d}' for i in range(1, 13)), 'B8A')


def measure(side: int, classes: int = 10, model: str = 'vit_tiny_patch16_256') -> dict[str, Any]:
    """Map a square scene of 13 bands with a model that is not trained.

    Args:
        side: Side of the scene, pixels.
        classes: Number of classes.
        model: Backbone.

    Returns:
        Side, megapixels, seconds, and the highest resident memory of the process in GiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / 'scene.tif'
        _write_scene(scene, side)
        task = SegmentationTask(model=model, bands=BANDS, tuning='full', num_classes=classes, head='linear')
        task.data = {'mean': [1000.0] * 13, 'std': [500.0] * 13}
        save_task(Path(folder) / 'model.safetensors', task.eval())
        del task
        found = open_model(Path(folder) / 'model.safetensors')
        start = time.perf_counter()
        out = Path(folder) / 'map.tif'
        make_map(Scene(scene, found.bands), found, 'model', out, MapOptions(overlap=0.0))
        seconds = time.perf_counter() - start
        with rasterio.open(out) as written:
            shape = written.shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        'scene': f'{side} x {side} x 13 uint16',
        'map': f'{shape[0]} x {shape[1]}',
        'seconds': round(seconds, 1),
        'peak_gib': round(peak, 2),
    }


def _write_scene(path: Path, side: int, block: int = 2000) -> None:
    """A tiled GeoTIFF of noise, one block in memory at a time."""
    profile = {
        'driver': 'GTiff',
        'count': 13,
        'height': side,
        'width': side,
        'dtype': 'uint16',
        'crs': 'EPSG:32631',
        'transform': from_origin(500000, 5000000, 10, 10),
        'tiled': True,
        'bigtiff': 'yes',
        'compress': 'deflate',
        'zlevel': 1,
    }
    # The same noise everywhere: only its size matters.
    noise = np.random.default_rng(0).integers(500, 560, (13, block, block)).astype(np.uint16)
    with rasterio.open(path, 'w', **profile) as target:
        target.descriptions = BANDS
        for top in range(0, side, block):
            for left in range(0, side, block):
                height, width = min(block, side - top), min(block, side - left)
                target.write(noise[:, :height, :width], window=Window(left, top, width, height))
