"""Make the small real data sets shipped in ``tests/data`` from complete downloads.

The source folder holds ``EuroSAT_RGB.zip``, ``EuroSAT_MS/<Class>/*.tif``,
``presto_train_test_split.json`` (keys ``train`` and ``test``) and ``NAIP/*.tif``::

    python benchmarks/prepare_data.py --source DIR --out tests/data

``--complete`` instead unpacks the whole RGB set into ``DIR/<split>/<Class>/`` for the larger
comparisons::

    python benchmarks/prepare_data.py --source DIR --complete data/eurosat_rgb

The choice of tiles depends only on their names, so every run ships the same files.
"""

import argparse
import hashlib
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import rasterio
from rasterio.windows import Window

MS_BANDS = (*(f'B{i:02d}' for i in range(1, 13)), 'B8A')  # file order: B8A comes last
NAIP_BANDS = ('red', 'green', 'blue', 'nir')


def choose(names: Iterable[str], count: int | None) -> list[str]:
    """Choose *count* names, or all, ranked by the SHA-256 of their stem (no seed), and sort them."""
    ranked = sorted(names, key=lambda n: hashlib.sha256(PurePosixPath(n).stem.encode()).digest())
    return sorted(ranked[:count])


def copy_rgb(archive: Path, split_file: Path, out: Path, counts: dict[str, int | None]) -> None:
    """Copy JPEG tiles into ``out/<split>/<Class>/``, a given number per class or all."""
    splits = json.loads(split_file.read_text(encoding='utf-8'))
    with zipfile.ZipFile(archive) as source:
        members = {PurePosixPath(n).stem: n for n in source.namelist() if n.endswith('.jpg')}
        for split, count in counts.items():
            by_class = defaultdict(list)
            for name in splits[split]:
                member = members[PurePosixPath(name).stem]
                by_class[PurePosixPath(member).parent.name].append(member)
            for label, names in sorted(by_class.items()):
                if count is not None and len(names) < count:
                    raise ValueError(f'{split} needs {count} tiles of {label}, got {len(names)}')
                (out / split / label).mkdir(parents=True, exist_ok=True)
                for name in choose(names, count):
                    (out / split / label / PurePosixPath(name).name).write_bytes(source.read(name))


def recompress(source: Path, target: Path, bands: tuple[str, ...], window: Window | None = None) -> None:
    """Deflate these bands of a GeoTIFF, or a window of them, and check that only the file size changed."""
    with rasterio.open(source) as src:
        if src.count != len(bands):
            raise ValueError(f'{source.name} has {src.count} bands, expected {len(bands)}: {bands}')
        pixels = src.read(window=window)
        profile = {
            **{'driver': 'GTiff', 'dtype': src.dtypes[0], 'count': src.count, 'nodata': src.nodata},
            **{'height': pixels.shape[1], 'width': pixels.shape[2], 'crs': src.crs},
            'transform': src.window_transform(window) if window else src.transform,
            # Otherwise GDAL would tag the fourth of four bands as transparency.
            **{'photometric': 'minisblack', 'alpha': 'unspecified'},
            # Bands differ more than neighboring pixels, so one strip per band compresses better.
            **{'interleave': 'band', 'blockysize': pixels.shape[1]},
            **{'compress': 'deflate', 'zlevel': 9, 'predictor': 2},
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, 'w', **profile) as dst:
        dst.write(pixels)
    with rasterio.open(target) as dst:
        same = np.array_equal(dst.read(), pixels) and dst.dtypes[0] == profile['dtype']
        if not same or dst.crs != profile['crs'] or dst.transform != profile['transform']:
            raise ValueError(f'{target} differs from {source}; delete it and run again')


def copy_naip(source: Path, out: Path, dates: tuple[str, ...], size: int = 256) -> None:
    """Crop a square window from the center of the scenes of these dates."""
    for path in (p for p in sorted(source.glob('*.tif')) if p.stem.endswith(dates)):
        with rasterio.open(path) as src:
            window = Window((src.width - size) // 2, (src.height - size) // 2, size, size)
        recompress(path, out / path.name, NAIP_BANDS, window)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--source', type=Path, required=True, help='folder with the downloads')
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument('--out', type=Path, help='folder to write the shipped choice to')
    kind.add_argument('--complete', type=Path, help='folder to write all RGB tiles to')
    parser.add_argument('--train', type=int, default=200, help='RGB training tiles per class')
    parser.add_argument('--test', type=int, default=100, help='RGB test tiles per class')
    parser.add_argument('--ms', type=int, default=12, help='13-band tiles per class')
    args = parser.parse_args()
    rgb = args.source / 'EuroSAT_RGB.zip', args.source / 'presto_train_test_split.json'
    if args.complete is not None:
        copy_rgb(*rgb, args.complete, {'train': None, 'test': None})
        return
    copy_rgb(*rgb, args.out / 'eurosat_rgb', {'train': args.train, 'test': args.test})
    for folder in sorted(p for p in (args.source / 'EuroSAT_MS').iterdir() if p.is_dir()):
        for name in choose((p.name for p in folder.glob('*.tif')), args.ms):
            recompress(folder / name, args.out / 'eurosat_ms' / folder.name / name, MS_BANDS)
    copy_naip(args.source / 'NAIP', args.out / 'naip', ('20170827', '20200831'))
    copy_naip(args.source / 'NAIP', args.out / 'naip_2010', ('20100629',))


if __name__ == '__main__':
    main()
