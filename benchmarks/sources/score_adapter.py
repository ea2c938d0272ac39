"""Score the shipped source, an adapter for it and free alternatives on labeled tiles.

    python -m benchmarks.sources.score_adapter ADAPTER TILES OUT.json

TILES is a folder of class folders that no setting was chosen on; `benchmarks/results/depth6_eurosat.json`
scores the 1,000 shipped test tiles.
"""

import json
import sys
from pathlib import Path

from explora_geo.checkpoints import load_backbone, read_adapter
from explora_geo.datamodules import FolderDataModule, Statistics
from explora_geo.datamodules.archive import LabeledTiles, look
from explora_geo.evaluation.comparison import score_pair
from explora_geo.models.weights import ViTSmall14_Weights

SOURCE = ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def main(adapter: Path, tiles: Path, out: Path) -> None:
    """Write the scores as JSON and print the table."""
    header, _ = read_adapter(adapter)
    name, size = str(SOURCE.meta['model']), header.img_size
    before = load_backbone(name, SOURCE, img_size=size)
    after = load_backbone(name, SOURCE, adapter)
    archive = look(tiles, patch_size=header.patch_size, image_size=size, kind='tiles')
    labeled = LabeledTiles(tiles, archive)
    datamodule = FolderDataModule(tiles, image_size=size, statistics=Statistics('imagenet', 'imagenet'))
    datamodule.setup('fit')
    comparison = score_pair(before, after, lambda: labeled.batches(datamodule), strengths=STRENGTHS)
    found = comparison.to_dict()
    command = f'python -m benchmarks.sources.score_adapter {adapter} {tiles} {out}'
    told = {'command': command, 'adapter': adapter.name, 'tiles': str(tiles)}
    out.write_text(json.dumps({**told, **found}, indent=1) + '\n')
    for row in found['rows']:
        means = ', '.join(
            f'{k} {v["mean"]:+.3f}' for k, v in row.items() if isinstance(v, dict) and 'mean' in v
        )
        print(f'{row["title"]}: {means}')


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:]))
