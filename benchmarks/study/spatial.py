"""Do EuroSAT's tile numbers tell where tiles lie? python -m benchmarks.study.spatial DATA."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import rasterio


def main(data: Path) -> str:
    """Report how often consecutive tiles of a class share a UTM zone, compared with random tiles."""
    near: list[bool] = []
    chance: list[float] = []
    for folder in sorted(p for p in (data / 'EuroSAT_MS').iterdir() if p.is_dir()):
        zones = []
        for path in sorted(folder.glob('*.tif'), key=lambda p: int(p.stem.rpartition('_')[2])):
            with rasterio.open(path) as tile:
                zones.append(tile.crs.to_epsg())
        near += [a == b for a, b in pairwise(zones)]
        zone = np.array(zones)
        same = (zone[:, None] == zone)[~np.eye(len(zone), dtype=bool)]
        chance.append(float(same.mean()))
    return (
        f'{len(near)} pairs that follow one another: {100 * np.mean(near):.0f} % in the same UTM zone; '
        f'drawn at random: {100 * np.mean(chance):.0f} %'
    )


if __name__ == '__main__':
    print(main(Path(sys.argv[1])))
