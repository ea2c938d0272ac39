"""Makes a tiny copy of fMoW-RGB's layout out of real EuroSAT tiles: python tests/data/fmow/data.py OUT."""

import json
import sys
from pathlib import Path

from PIL import Image

TILES = Path(__file__).parents[1] / 'eurosat_rgb' / 'test'
# Category, location, images; and the year of the first.
PLACES = (('airport', 0, 4, 2012), ('crop_field', 7, 2, 2009), ('zoo', 12, 1, 2016), ('zoo', 3, 3, 2004))


def create(root: Path, splits: tuple[str, ...] = ('train', 'val')) -> Path:
    """Write lists, images of different sizes, and the JSON file beside each."""
    tiles = sorted(TILES.glob('*/*.jpg'))
    for split in splits:
        rows = ['category,location,timestamp']
        for place, (category, location, count, year) in enumerate(PLACES):
            folder = root / 'fmow' / split / category / f'{category}_{location}'
            folder.mkdir(parents=True)
            for i in range(count):
                name = f'{category}_{location}_{i}_rgb'
                size = (48 + 8 * i, 64 - 4 * i)
                Image.open(tiles[10 * place + i]).resize(size).save(folder / f'{name}.jpg', quality=95)
                polygon = f'POLYGON (({place} 10, {place} 11, {place + 1} 11, {place + 1} 10, {place} 10))'
                (folder / f'{name}.json').write_text(json.dumps({'raw_location': polygon}))
                time = f'{year + i}-0{1 + i}-15T1{i}:20:30Z'
                label = ('airport', 'crop_field', 'zoo').index(category)
                label = (0, 11, 61)[label]
                path = (folder / f'{name}.jpg').relative_to(root)
                rows.append(f'{label},{path},{time}')
        (root / f'{split}_62classes.csv').write_text('\n'.join(rows) + '\n')
    return root


if __name__ == '__main__':
    create(Path(sys.argv[1]))
