"""Segmentation of real images: clouds of 38-Cloud, buildings of SpaceNet, land cover of NAIP."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from lightning.pytorch import seed_everything
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from torchgeo.transforms import AppendNDVI, AppendNDWI

from explora_geo.datamodules import MaskFolderDataModule
from explora_geo.maps import MapOptions, make_map
from explora_geo.maps.model import open_model
from explora_geo.maps.scene import Scene
from explora_geo.trainers import OptimConfig, Regularisation, SegmentationTask
from explora_geo.trainers.kernels import faster_precision

from .fitting import build_trainer, quiet

SOURCE = 'ViTTiny8_Weights.TINY_IMAGENET_MAE'
RGB = ('red', 'green', 'blue')
#: Coordinates of images whose place is not known: metres on paper.
NOWHERE = 'LOCAL_CS["unknown place",UNIT["metre",1]]'
#: The patch that is mapped, half of it cloud; its eastern half is never trained on. Nearly all the other
#: patches are all cloud or all clear, so none of them shows what an edge of a cloud is.
MAPPED = '032029'


def write_tiles(
    folder: Path, image: NDArray[Any], mask: NDArray[Any], name: str, size: int = 64, step: int = 64
) -> int:
    """Cut an image and its mask into tiles for `MaskFolderDataset`; tiles without data are left out.

    Args:
        folder: Folder to hold `images` and `masks`.
        image: Pixels, shape (3, H, W).
        mask: Classes, shape (H, W).
        name: Beginning of the file names.
        size: Side of a tile, pixels.
        step: Distance of tiles, pixels.

    Returns:
        Number of tiles.
    """
    count = 0
    for top in range(0, image.shape[1] - size + 1, step):
        for left in range(0, image.shape[2] - size + 1, step):
            place = slice(top, top + size), slice(left, left + size)
            if (image[:, *place] == 0).all(0).mean() > 0.5:
                continue
            for kind, data in (('images', image[:, *place]), ('masks', mask[None, *place])):
                write_raster(folder / kind / f'{name}_{top:04d}_{left:04d}.tif', data)
            count += 1
    return count


def write_raster(path: Path, pixels: NDArray[Any], **kwargs: Any) -> Path:
    """Write pixels of shape (C, H, W), with band names where there are three."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        'count': len(pixels),
        'dtype': pixels.dtype,
        'height': pixels.shape[1],
        'width': pixels.shape[2],
    }
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(path, 'w', driver='GTiff', **profile, **kwargs) as target:
            target.write(pixels)
            if len(pixels) == 3:
                target.descriptions = RGB
    return path


def read_band(path: Path) -> NDArray[Any]:
    """The first band of a raster."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        with rasterio.open(path) as source:
            pixels: NDArray[Any] = source.read(1)
    return pixels


def tune(task: Any, data: Any, out: Path, epochs: int) -> dict[str, float]:
    """Tune and test a task; its model file lies in `out`."""
    with quiet():
        trainer = build_trainer(out, -1, max_epochs=epochs, precision=faster_precision())
        trainer.fit(task, datamodule=data)
        scores = dict(trainer.test(task, datamodule=data, verbose=False)[0])
    return {k: round(float(v), 4) for k, v in scores.items()}


def _segmentation(classes: Sequence[str], epochs: int, data: Any, out: Path) -> dict[str, float]:
    task = SegmentationTask(
        weights=SOURCE,
        tuning='lora',
        num_classes=len(classes),
        ignore_index=255,
        head='upernet',
        head_channels=64,
        optim=OptimConfig(base_lr=1e-3, lr_scaling='none', betas=(0.9, 0.999), warmup_fraction=0.1),
        regularisation=Regularisation(drop_path=0.1),
    )
    return tune(task, data, out, epochs)


def clouds(source: Path, out: Path, epochs: int = 10) -> dict[str, float]:
    """Clouds of 38-Cloud in red, green and blue; half of one patch is held out, the whole is mapped.

    Args:
        source: Folder with `red`, `green`, `blue` and `gt`.
        out: Folder to write: `map.tif`, `clouds.png`, `model.safetensors`.
        epochs: Passes over the tiles.

    Returns:
        Test metrics on the held-out half.

    Raises:
        FileNotFoundError: If the folder is another.
    """
    seed_everything(0, verbose=False)
    patches = sorted((source / 'gt').glob('*.TIF'))
    if not patches:
        raise FileNotFoundError(f'{source} holds no gt/*.TIF: give the folder of 38-Cloud')
    tiles = out / 'tiles'
    shutil.rmtree(tiles, ignore_errors=True)
    for path in patches:
        name = path.name.removeprefix('gt_')
        image = np.stack([read_band(source / band / f'{band}_{name}') for band in RGB])
        mask = (read_band(path) > 0).astype(np.uint8)
        if MAPPED not in name:
            write_tiles(tiles / 'train', image, mask, name[:40])
            continue
        half = image.shape[2] // 2
        write_tiles(tiles / 'train', image[:, :, :half], mask[:, :half], name[:40], step=16)
        write_tiles(tiles / 'test', image[:, :, half:], mask[:, half:], name[:40])
        place = {'crs': NOWHERE, 'transform': from_origin(0, 384 * 30, 30, 30), 'nodata': 0}
        scene = write_raster(out / 'scene.tif', image, **place)
    data = MaskFolderDataModule(
        tiles / 'train',
        test_root=tiles / 'test',
        classes=('clear', 'cloud'),
        colours=((60, 110, 70), (240, 240, 245)),
        ignore_black=255,
        image_size=64,
        batch_size=32,
        cache=True,
    )
    scores = _segmentation(('clear', 'cloud'), epochs, data, out)
    model = open_model(out / 'model.safetensors')
    make_map(
        Scene(scene, model.bands),
        model,
        'UPerNet on the shipped ViT-Ti',
        out / 'map.tif',
        MapOptions(overlap=0.5),
        quicklook=out / 'clouds.png',
    )
    return scores


def buildings(source: Path, out: Path, epochs: int = 30) -> dict[str, float]:
    """Buildings of one panchromatic SpaceNet tile, repeated as three bands; the last third is the test.

    Args:
        source: Folder with `sample_geotiff.tif` and `sample_fp_mask_from_geojson.tif`.
        out: Folder to write: `map.tif`, `buildings.gpkg`, `buildings.png`, `model.safetensors`.
        epochs: Passes over the tiles.

    Returns:
        Test metrics.
    """
    seed_everything(0, verbose=False)
    with rasterio.open(source / 'sample_geotiff.tif') as file:
        pan, place = file.read(1), {'crs': file.crs, 'transform': file.transform}
    mask = (read_band(source / 'sample_fp_mask_from_geojson.tif') > 0).astype(np.uint8)
    image, tiles = np.repeat(pan[None], 3, axis=0), out / 'tiles'
    shutil.rmtree(tiles, ignore_errors=True)
    cut = 2 * pan.shape[1] // 3
    write_tiles(tiles / 'train', image[:, :, :cut], mask[:, :cut], 'left', step=32)
    write_tiles(tiles / 'test', image[:, :, cut:], mask[:, cut:], 'right')
    scene = write_raster(out / 'scene.tif', image, **place)
    data = MaskFolderDataModule(
        tiles / 'train',
        test_root=tiles / 'test',
        classes=('other', 'building'),
        colours=((235, 230, 220), (190, 60, 40)),
        image_size=64,
        batch_size=32,
        cache=True,
    )
    scores = _segmentation(('other', 'building'), epochs, data, out)
    model = open_model(out / 'model.safetensors')
    make_map(
        Scene(scene, model.bands),
        model,
        'UPerNet on the shipped ViT-Ti',
        out / 'map.tif',
        MapOptions(overlap=0.5),
        vectors=out / 'buildings.gpkg',
        vector_classes=('building',),
        min_area=20,
        quicklook=out / 'buildings.png',
    )
    return scores


def land_cover(scene: Path, out: Path, epochs: int = 12) -> dict[str, float]:
    """Water, bare or sparse ground and vegetation of an aerial scene from red, green and blue alone.

    The labels are spectral indices of the near infrared, which the model never sees. The eastern third is
    the test.

    Args:
        scene: NAIP scene with the bands red, green, blue and near infrared.
        out: Folder to write: `map.tif`, `land_cover.png`, `model.safetensors`.
        epochs: Passes over the tiles.

    Returns:
        Test metrics.

    Raises:
        ValueError: If the scene has other than four bands.
    """
    seed_everything(0, verbose=False)
    with rasterio.open(scene) as file:
        if file.count != 4:
            raise ValueError(f'{scene} has {file.count} bands: give a NAIP scene of red, green, blue and nir')
        pixels, place = file.read(), {'crs': file.crs, 'transform': file.transform}
    image, tiles = pixels[:3], out / 'tiles'
    mask = index_classes(pixels)
    shutil.rmtree(tiles, ignore_errors=True)
    cut = 2 * image.shape[2] // 3
    write_tiles(tiles / 'train', image[:, :, :cut], mask[:, :cut], 'west', step=32)
    write_tiles(tiles / 'test', image[:, :, cut:], mask[:, cut:], 'east')
    rgb = write_raster(out / 'scene.tif', image, **place)
    names = ('water', 'bare or sparse', 'vegetation')
    data = MaskFolderDataModule(
        tiles / 'train',
        test_root=tiles / 'test',
        classes=names,
        colours=((70, 120, 190), (225, 200, 150), (70, 130, 60)),
        image_size=64,
        batch_size=32,
        cache=True,
    )
    scores = _segmentation(names, epochs, data, out)
    model = open_model(out / 'model.safetensors')
    make_map(
        Scene(rgb, model.bands),
        model,
        'UPerNet on the shipped ViT-Ti',
        out / 'map.tif',
        MapOptions(overlap=0.5),
        quicklook=out / 'land_cover.png',
    )
    return scores


def index_classes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Water where NDWI is above 0.3, bare or sparse where NDVI is below 0.3, else vegetation.

    Args:
        pixels: Red, green, blue and near infrared, shape (4, H, W).

    Returns:
        Classes 0, 1 and 2, shape (H, W).
    """
    image = torch.from_numpy(pixels.astype(np.float32))[None]
    water = AppendNDWI(index_green=1, index_nir=3)(image)[0, -1] > 0.3
    sparse = AppendNDVI(index_nir=3, index_red=0)(image)[0, -1] < 0.3
    return torch.where(water, 0, torch.where(sparse, 1, 2)).numpy().astype(np.uint8)
