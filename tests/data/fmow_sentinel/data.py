"""Makes a tiny copy of fMoW-Sentinel's layout out of real EuroSAT tiles: python .../data.py OUT."""

import sys
import warnings
from pathlib import Path

import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

TILES = Path(__file__).parents[1] / 'eurosat_ms'
PLACES = (('airport', 0, 3), ('lake_or_pond', 21, 2), ('zoo', 5, 2))
# EuroSAT's files end with B8A, fMoW-Sentinel's have it after B08.
ORDER = (1, 2, 3, 4, 5, 6, 7, 8, 13, 9, 10, 11, 12)


def create(root: Path, splits: tuple[str, ...] = ('train', 'val')) -> Path:
    """Write lists and GeoTIFF tiles of different sizes."""
    tiles = sorted(TILES.glob('*/*.tif'))
    for split in splits:
        rows = [',category,location_id,image_id,timestamp,image_path']
        for place, (category, location, count) in enumerate(PLACES):
            folder = root / 'fmow-sentinel' / split / category / f'{category}_{location}'
            folder.mkdir(parents=True)
            for i in range(count):
                image = 100 + i
                path = folder / f'{category}_{location}_{image}.tif'
                _copy(tiles[20 * place + i], path, Window(0, 0, 40 + 4 * i, 48))
                time = f'201{7 + i}-0{1 + place}-11T10:00:00Z'
                rows.append(f'{len(rows)},{category},{location},{image},{time},/home/somebody/{path.name}')
        (root / f'{split}.csv').write_text('\n'.join(rows) + '\n')
    return root


def _copy(source: Path, target: Path, window: Window) -> None:
    with warnings.catch_warnings(), rasterio.open(source) as src:
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        pixels = src.read(ORDER, window=window)
        profile = {
            **{'driver': 'GTiff', 'count': 13, 'dtype': src.dtypes[0], 'crs': src.crs},
            **{'height': pixels.shape[1], 'width': pixels.shape[2]},
            'transform': src.window_transform(window),
        }
        with rasterio.open(target, 'w', **profile) as dst:
            dst.write(pixels)


if __name__ == '__main__':
    create(Path(sys.argv[1]))
