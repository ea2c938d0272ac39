"""Tiny random files in the true format of every data set of the tables."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.datasets.fmow import SENTINEL_BANDS

_CLASSES = ('airport', 'crop_field', 'zoo')


def _image(path: Path, size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def _raster(path: Path, pixels: np.ndarray, left: float, top: float, step: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {'count': count, 'height': height, 'width': width, 'dtype': pixels.dtype, 'crs': 'EPSG:4326'}
    with rasterio.open(
        path, 'w', driver='GTiff', **profile, transform=from_origin(left, top, step, step)
    ) as target:
        target.write(pixels)


def _spectral(path: Path, bands: int, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(1, 4000, (bands, *size)).astype(np.uint16)
    _raster(path, pixels, 10.0, 50.0, 1e-4)


def _folder(root: Path, bands: Sequence[str]) -> None:
    """Class folders of JPEG, or of GeoTIFF where bands are named."""
    for label, name in enumerate(_CLASSES):
        for number in range(6):
            if len(bands) > 3:
                _spectral(root / name / f'{name}_{number}.tif', len(bands), (64, 64), 9 * label + number)
            else:
                _image(root / name / f'{name}_{number}.jpg', (64, 64), 9 * label + number)


def _fmow_rgb(root: Path) -> None:
    """Two lists of places with one to three images of different sizes, and the JSON file beside each."""
    for split in ('train', 'val'):
        rows = ['category,location,timestamp']
        for place in range(6):
            category = _CLASSES[place % 3]
            for number in range(1 + place % 3):
                stem = f'fmow/{split}/{category}/{category}_{place}/{category}_{place}_{number}_rgb'
                _image(root / f'{stem}.jpg', (48 + 8 * number, 64), place)
                (root / f'{stem}.json').write_text(
                    json.dumps({'raw_location': 'POLYGON ((0 1, 0 2, 1 2, 0 1))'})
                )
                rows.append(f'{category},{stem}.jpg,{2010 + number}-0{1 + number}-15T10:20:30Z')
        (root / f'{split}_62classes.csv').write_text('\n'.join(rows) + '\n')


def _fmow_sentinel(root: Path) -> None:
    """Two lists of places with two tiles of 13 bands each."""
    for split in ('train', 'val'):
        rows = [',category,location_id,image_id,timestamp,image_path']
        for place in range(6):
            category = _CLASSES[place % 3]
            for image in (100, 101):
                name = f'{category}_{place}_{image}.tif'
                folder = root / 'fmow-sentinel' / split / category / f'{category}_{place}'
                _spectral(folder / name, len(SENTINEL_BANDS), (40 + image % 100 * 4, 48), place)
                rows.append(f'{len(rows)},{category},{place},{image},2017-01-11T10:00:00Z,{name}')
        (root / f'{split}.csv').write_text('\n'.join(rows) + '\n')


def _eurosat(root: Path, multispectral: bool) -> None:
    """Class folders, and the list of the public split beside them."""
    _folder(root, MS_BANDS if multispectral else ())
    names = sorted(path.stem for path in root.glob('*/*'))
    split = {'train': [n for n in names if int(n[-1]) < 4], 'test': [n for n in names if int(n[-1]) >= 4]}
    (root / 'split.json').write_text(json.dumps(split))


def _resisc45(root: Path) -> None:
    names: dict[str, list[str]] = {'train': [], 'val': [], 'test': []}
    for label in ('airplane', 'bridge', 'church'):
        for number, split in enumerate(['train'] * 4 + ['val'] * 2 + ['test'] * 2):
            name = f'{label}_{number:03d}.jpg'
            _image(root / 'NWPU-RESISC45' / label / name, (48, 48), number)
            if not (split == 'val' and label == 'bridge'):  # a class may lack in a split
                names[split].append(name)
    for split, listed in names.items():
        (root / f'resisc45-{split}.txt').write_text('\n'.join(listed))


def _naip_landcover(root: Path) -> None:
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(14):
        np.save(root / f'{i}tile.npy', generator.integers(0, 255, (50, 50, 4)).astype(np.uint8))
    np.save(root / 'y_50_100.npy', np.array([1, 36, 176] * 4 + [1, 36]))
    np.save(root / 'splits.npy', np.array([0] * 8 + [1] * 3 + [2] * 3))


def _spacenet1(root: Path) -> None:
    box = 1e-6
    for split in ('train', 'test'):
        for number in range(1, 13):
            folder = root / 'SN1_buildings' / split
            left, top = -43.6 + number * 4e-3, -22.9
            pixels = np.random.default_rng(number).integers(1, 255, (3, 406, 439)).astype(np.uint8)
            pixels[:, :, 310:] = 0  # outside the scene
            _raster(folder / '3band' / f'3band_AOI_1_RIO_img{number}.tif', pixels, left, top, box)
            if split == 'train':
                x, y = left + 50 * box, top - 50 * box
                ring = [(x, y), (x + 120 * box, y), (x + 120 * box, y - 90 * box), (x, y - 90 * box), (x, y)]
                shape = {'type': 'Polygon', 'coordinates': [ring]}
                feature = {'type': 'Feature', 'properties': {}, 'geometry': shape}
                label = folder / 'geojson' / f'Geo_AOI_1_RIO_img{number}.geojson'
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(json.dumps({'type': 'FeatureCollection', 'features': [feature]}))


def _camelyon17(root: Path) -> None:
    for name, unlabeled in (('camelyon17_v1.0', False), ('camelyon17_unlabeled_v1.0', True)):
        rows = []
        for number in range(24):
            center, patient = number % 5, f'{number % 5:03d}'
            row = {
                'patient': patient,
                'node': 1,
                'x_coord': number,
                'y_coord': 7,
                'center': center,
                'slide': center,
            }
            row |= {'tumor': -1 if unlabeled else number // 5 % 2, 'split': int(number % 4 == 0)}
            rows.append(row)
            folder = root / name / 'patches' / f'patient_{patient}_node_1'
            _image(folder / f'patch_patient_{patient}_node_1_x_{number}_y_7.png', (96, 96), number)
        pd.DataFrame(rows).to_csv(root / name / 'metadata.csv')


def _iwildcam(root: Path) -> None:
    rows = []
    for number, split in enumerate(
        ['train'] * 10 + ['id_val'] * 2 + ['val'] * 4 + ['id_test'] * 2 + ['test'] * 4
    ):
        # The last image of val and of test has a class that training lacks.
        label = 3 if number in (15, 21) else number % 3
        rows.append({'split': split, 'filename': f'{number}.jpg', 'y': label})
        _image(root / 'iwildcam_v2.0' / 'train' / f'{number}.jpg', (40, 60), number)
        _image(root / 'iwildcam_unlabeled_v1.0' / 'images' / f'u{number}.jpg', (60, 40), 99 + number)
    pd.DataFrame(rows).to_csv(root / 'iwildcam_v2.0' / 'metadata.csv')
    names = pd.DataFrame({'y': [0, 1, 2, 3, 99999], 'name': ['empty', 'jaguar', 'ocelot', 'tapir', 'other']})
    names.to_csv(root / 'iwildcam_v2.0' / 'categories.csv')
    uids = pd.DataFrame({'uid': [f'u{i}' for i in range(22)]})
    uids.to_csv(root / 'iwildcam_unlabeled_v1.0' / 'metadata.csv')


#: What writes a data set's files into a folder, by the name of its configuration.
WRITERS: dict[str, Callable[[Path], None]] = {
    'fmow_rgb': _fmow_rgb,
    'fmow_sentinel': _fmow_sentinel,
    'fmow_temporal': _fmow_rgb,
    'eurosat_ms': lambda root: _eurosat(root, True),
    'eurosat_rgb': lambda root: _eurosat(root, False),
    'resisc45': _resisc45,
    'naip_landcover': _naip_landcover,
    'spacenet1': _spacenet1,
    'camelyon17': _camelyon17,
    'iwildcam': _iwildcam,
}
