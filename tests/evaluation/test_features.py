"""Frozen features, and their cache: same key, same features; anything else, another entry."""

import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, Dataset, Subset

from explora_geo.datasets import FMoWRGB, FMoWTemporal, FolderDataset, PackedDataset, collate_skipping
from explora_geo.datasets.packed import pack
from explora_geo.evaluation import extract_features
from explora_geo.evaluation import features as features_module
from explora_geo.evaluation.features import cached_features, dataset_sha256
from explora_geo.models import ViT, create_vit

Build = Callable[..., ViT]


def test_features_are_the_tokens_of_the_last_blocks_in_order(build_vit: Build, images: Tensor) -> None:
    vit = build_vit()
    batches = [{'image': images[i : i + 3], 'label': torch.arange(8)[i : i + 3]} for i in (0, 3, 6)]
    found = extract_features(vit, batches, blocks=2)
    assert found.label.tolist() == list(range(8)) and vit.training
    assert found.cls.shape == found.avg.shape == (8, 2, 32)
    vit.eval()
    with torch.no_grad():
        last = vit(images)
        before = vit.intermediate(images, [1])[0]
    assert_close(found.cls[:, -1], last.cls)
    assert_close(found.avg[:, -1], last.patches[:, 0].mean(1))
    assert_close(found.cls[:, 0], before.cls)


def test_stochastic_depth_is_off(build_vit: Build, images: Tensor) -> None:
    vit = build_vit(drop_path_rate=0.9).train()
    batch = [{'image': images, 'label': torch.zeros(8)}]
    first, second = (extract_features(vit, batch, blocks=1).cls for _ in range(2))
    assert torch.equal(first, second)


def test_no_images_are_refused(build_vit: Build) -> None:
    with pytest.raises(ValueError, match='no images'):
        extract_features(build_vit(), [])


@pytest.fixture
def extract(
    tmp_path: Path, tiles: Path, build_vit: Build, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Extract features of 24 tiles in files of 10, with a chosen transform."""
    monkeypatch.setattr(features_module, 'SHARD', 10)

    def call(vit: ViT | None = None, scale: float = 100.0, **kwargs: Any) -> Any:
        defaults: dict[str, Any] = {
            'dataset': FolderDataset(tiles, size=32),
            'transform': lambda batch: {**batch, 'image': batch['image'] / scale},
            'collate': collate_skipping,
            'batch_size': 4,
        }
        vit = build_vit() if vit is None else vit
        return cached_features(tmp_path / 'cache', vit, **{**defaults, **kwargs})

    return call


def entries(tmp_path: Path) -> list[str]:
    return sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / 'cache').rglob('*.safetensors'))


def test_features_are_those_of_the_backbone_in_order(
    extract: Callable[..., Any], build_vit: Build, tiles: Path, tmp_path: Path
) -> None:
    vit = build_vit()
    found = extract(vit)
    dataset = FolderDataset(tiles, size=32)
    images = torch.stack([dataset[i]['image'] for i in range(24)]) / 100
    with torch.no_grad():
        expected = vit.eval().intermediate(images, [-3, -2, -1])
    assert found.label.tolist() == dataset.labels
    assert_close(found.cls.float(), torch.stack([f.cls for f in expected], 1), atol=2e-3, rtol=2e-3)
    mean = torch.stack([f.patches.mean((1, 2)) for f in expected], 1)
    assert_close(found.avg.float(), mean, atol=2e-3, rtol=2e-3)
    assert len(entries(tmp_path)) == 3


def test_the_second_time_no_image_passes_the_backbone(
    extract: Callable[..., Any], build_vit: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = build_vit()
    first = extract(vit)
    monkeypatch.setattr(features_module, 'extract_features', None)
    again = extract(vit)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


def test_an_interrupted_extraction_goes_on_where_it_stopped(
    extract: Callable[..., Any], build_vit: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = build_vit()
    original = features_module.extract_features
    calls = []

    def stop_at_the_third(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(features_module, 'extract_features', stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        extract(vit)
    assert len(entries(tmp_path)) == 2
    extract(vit)
    assert len(calls) == 4 and len(entries(tmp_path)) == 3
    uncached = cached_features(
        None, vit, FolderDataset(next((tmp_path / 'tiles').parent.glob('tiles')), size=32)
    )
    assert len(uncached.label) == 24


def test_other_weights_images_or_transforms_have_another_entry(
    extract: Callable[..., Any], build_vit: Build, tiles: Path, tmp_path: Path
) -> None:
    vit = build_vit()
    extract(vit)
    count = len(entries(tmp_path))
    with torch.no_grad():
        vit.norm.bias += 1
    extract(vit)
    assert len(entries(tmp_path)) == 2 * count
    extract(vit, scale=50.0)
    assert len(entries(tmp_path)) == 3 * count
    changed = sorted(tiles.rglob('*.jpg'))[-1]
    os.utime(changed, ns=(1, 1))
    extract(vit)
    assert len(entries(tmp_path)) == 4 * count
    turned = extract(vit, turns=4)
    assert len(entries(tmp_path)) == 5 * count
    assert not torch.allclose(turned.avg.float(), extract(vit).avg.float(), atol=1e-2)


def test_a_full_disk_keeps_the_finished_files(
    extract: Callable[..., Any], tmp_path: Path, build_vit: Build, fail_to_write: Callable[[], None]
) -> None:
    vit = build_vit()
    extract(vit, dataset=Subset(FolderDataset(tmp_path / 'tiles', size=32), range(10)))
    before = entries(tmp_path)
    fail_to_write()
    with pytest.raises(OSError, match='No space left'):
        extract(vit, scale=2.0)
    assert entries(tmp_path) == before


def test_torn_tiles_are_left_out_and_named_from_the_cache_too(
    extract: Callable[..., Any], tiles: Path, build_vit: Build
) -> None:
    torn = sorted(tiles.rglob('*.jpg'))[12]
    torn.write_bytes(torn.read_bytes()[:-50])
    vit = build_vit()
    for _ in range(2):
        found = extract(vit)
        assert len(found.label) == 23 and len(found.skipped) == 1 and torn.name in found.skipped[0]


class Numbers(Dataset[dict[str, Any]]):
    """A data set that lists no files."""

    def __init__(self, offset: float = 0.0, label: Any = 0) -> None:
        self.offset, self.label = offset, label

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((3, 32, 32), self.offset + index)
        return {'image': image, 'label': torch.as_tensor(self.label)}


def test_the_batch_size_changes_no_entry(
    extract: Callable[..., Any], build_vit: Build, tmp_path: Path
) -> None:
    vit = build_vit()
    first = extract(vit)
    count = len(entries(tmp_path))
    for options in ({'batch_size': 7}, {'batch_size': 64}, {'batch_size': 1, 'num_workers': 1}):
        found = extract(vit, **options)
        assert len(entries(tmp_path)) == count and torch.equal(found.cls, first.cls)


def test_data_that_list_no_files_are_not_cached(build_vit: Build, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match='not cached: the data set lists no files'):
        found = cached_features(tmp_path / 'cache', build_vit(), Numbers())
    assert len(found.label) == 6 and entries(tmp_path) == []
    assert dataset_sha256(Subset(Numbers(), [0])) is dataset_sha256(Numbers()) is None


def test_parts_of_data_are_told_apart(tiles: Path) -> None:
    data = FolderDataset(tiles)
    kinds = (data, Subset(data, [0, 1]), Subset(data, [0, 2]), ConcatDataset([data, data]))
    assert len({dataset_sha256(kind) for kind in kinds} - {None}) == 4


def test_images_of_fmow_are_read_once(
    build_vit: Build, fmow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, vit, read = FMoWRGB(fmow, size=32), build_vit(), []
    original = FMoWRGB._read
    monkeypatch.setattr(FMoWRGB, '_read', lambda self, i: read.append(i) or original(self, i))
    options: dict[str, Any] = {'transform': lambda b: {**b, 'image': b['image'] / 255}}
    first = cached_features(tmp_path / 'cache', vit, data, **options)
    few = 2 * min(8, len(data))  # show what the transform does
    assert len(read) == len(data) + few
    again = cached_features(tmp_path / 'cache', vit, data, batch_size=2, **options)
    assert len(read) == len(data) + 2 * few and torch.equal(again.cls, first.cls)


def test_series_are_cached_unless_their_frames_are_drawn(fmow: Path, tmp_path: Path) -> None:
    vit = create_vit('vit_tiny_patch16_224', img_size=32, tokenizer='temporal')
    for drawn in (False, True):
        data = FMoWTemporal(fmow, size=32, random_frames=drawn)
        with pytest.warns(UserWarning, match='random_frames') if drawn else nullcontext():
            cached_features(tmp_path / 'cache', vit, data)
        assert len(entries(tmp_path)) == 1


def test_labels_must_be_one_class_per_image(build_vit: Build) -> None:
    with pytest.raises(ValueError, match=r'one class per image, got labels of shape \(6, 2\)'):
        cached_features(None, build_vit(), Numbers(label=[0, 1]))


def test_a_pack_that_was_made_again_is_another_data_set(tiles: Path, tmp_path: Path) -> None:
    found = []
    for name in ('one', 'two', 'three'):
        out = tmp_path / name / 'pack'
        for _ in pack(FolderDataset(tiles), out):
            pass
        found.append(dataset_sha256(PackedDataset(out)))
        shutil.copy(sorted(tiles.rglob('*.jpg'))[0], sorted(tiles.rglob('*.jpg'))[12])
    assert len(set(found)) == 3  # files are told apart by their time too
    assert dataset_sha256(PackedDataset(tmp_path / 'three' / 'pack')) == found[2]
