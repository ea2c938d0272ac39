from pathlib import Path

import torch

from explora_geo.demo.tiles import Tiles, draw_labels, split_by_class

LABEL = torch.arange(10).repeat_interleave(8)


def test_a_labelled_folder_is_read_in_units_of_the_files(few_tiles: Path) -> None:
    tiles = Tiles.read(few_tiles / 'train')
    assert tiles.image.shape == (80, 3, 64, 64)
    assert tiles.label.bincount().tolist() == [8] * 10
    assert 100 < tiles.image.max() <= 255
    assert Tiles.read(few_tiles / 'train', 48).image.shape == (80, 3, 48, 48)


def test_a_split_keeps_classes_balanced_and_uses_every_tile_once() -> None:
    first, rest = split_by_class(LABEL, 0.75)
    assert LABEL[first].bincount().tolist() == [6] * 10
    assert LABEL[rest].bincount().tolist() == [2] * 10
    assert sorted([*first.tolist(), *rest.tolist()]) == list(range(80))


def test_a_draw_has_the_same_number_of_distinct_tiles_of_each_class() -> None:
    index = draw_labels(LABEL, 3, seed=0)
    assert LABEL[index].bincount().tolist() == [3] * 10
    assert len(index.unique()) == 30


def test_seeds_draw_other_tiles_and_the_same_seed_the_same() -> None:
    draws = [draw_labels(LABEL, 3, seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
