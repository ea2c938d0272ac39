"""A few tiles of each class in the demo's layout."""

import shutil
from pathlib import Path

import pytest

TILES = Path(__file__).parents[1] / 'data' / 'eurosat_rgb'


@pytest.fixture(scope='session')
def few_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and three test tiles of each class."""
    root = tmp_path_factory.mktemp('eurosat')
    for part, count in (('train', 8), ('test', 3)):
        for folder in sorted((TILES / part).iterdir()):
            if folder.is_dir():
                (root / part / folder.name).mkdir(parents=True)
                for file in sorted(folder.iterdir())[:count]:
                    shutil.copy(file, root / part / folder.name)
    return root
