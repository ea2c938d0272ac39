from pathlib import Path

import pytest

from explora_geo.demo.run import Recipe, find_data


def test_arguments_of_the_objective_are_checked_and_named() -> None:
    with pytest.raises(ValueError, match=r"MAE cannot take \{'views': 3\}"):
        _ = Recipe(objective='MAE', arguments={'views': 3}).factory
    with pytest.raises(ValueError, match='num_crops'):
        _ = Recipe(objective='DINOv2', arguments={'views': {'num_crops': 3}}).factory


def test_missing_tiles_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no EuroSAT tiles'):
        find_data(tmp_path)
