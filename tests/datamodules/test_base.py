"""What all data modules share."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from explora_geo.datamodules import FolderDataModule


@pytest.mark.parametrize(
    ('processes', 'batch', 'expected'), [(1, 8, 1), (2, 8, 1), (2, 10, 1), (2, 4, 1), (3, 2, 2)]
)
def test_every_process_has_a_batch_where_there_are_images(
    tiles: Path, processes: int, batch: int, expected: int
) -> None:
    for path in sorted(tiles.glob('*/*'))[10:]:
        path.unlink()
    datamodule = FolderDataModule(tiles, image_size=32, batch_size=batch)
    datamodule.setup('fit')
    strategy = SimpleNamespace(broadcast=lambda seed: seed)
    trainer: Any = SimpleNamespace(strategy=strategy, world_size=processes, global_rank=0)
    datamodule.trainer = trainer
    assert len(datamodule.train_dataloader()) == expected
