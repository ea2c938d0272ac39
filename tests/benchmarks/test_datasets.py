"""Data sets that only tables read, on fakes of their true layouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from benchmarks.datasets import (
    Camelyon17DataModule,
    IWildCamDataModule,
    NAIPLandCoverDataModule,
    RESISC45DataModule,
    SpaceNet1DataModule,
    SpaceNet1Dataset,
    spacenet1,
)

Seed = Callable[[str], Path]


def lengths(module: Any) -> list[int]:
    for stage in ('fit', 'test', 'predict'):
        module.setup(stage)
    parts = (module.train_dataset, module.val_dataset, module.test_dataset, module.predict_dataset)
    return [0 if part is None else len(part) for part in parts]


def test_resisc45_has_torchgeos_splits_statistics_and_one_numbering(seed_data: Seed) -> None:
    module = RESISC45DataModule(seed_data('resisc45'), image_size=32)
    assert lengths(module) == [12, 4, 6, 6]
    assert module.mean.tolist() == pytest.approx([93.8939, 97.1123, 87.5678], abs=1e-3)
    labels = [int(module.val_dataset[i]['label']) for i in range(4)]
    assert labels == [0, 0, 2, 2] and module.val_dataset.classes == ('airplane', 'bridge', 'church')
    with pytest.raises(
        FileNotFoundError, match=r'resisc45-train\.txt does not exist: download it through TorchGeo'
    ):
        RESISC45DataModule(seed_data('naip_landcover')).setup('fit')


def test_naip_land_cover_tests_on_val_and_test_with_codes_as_labels(seed_data: Seed) -> None:
    root = seed_data('naip_landcover')
    module = NAIPLandCoverDataModule(root, image_size=50)
    assert lengths(module) == [8, 3, 6, 6]
    assert module.train_dataset.classes == ('1', '36', '176')
    sample = module.val_dataset[1]
    assert int(sample['label']) == 0
    assert np.array_equal(sample['image'].numpy(), np.load(root / '9tile.npy')[:, :, :3].transpose(2, 0, 1))
    assert module.std.tolist() == pytest.approx([45.325, 34.945, 30.369], abs=1e-2)
    assert NAIPLandCoverDataModule(root, bands=None, image_size=32).kwargs['bands'] is None
    nir = NAIPLandCoverDataModule(root, bands=['nir'], image_size=32)
    nir.setup('fit')
    assert nir.train_dataset[0]['image'].shape == (1, 32, 32) and 100 < nir.mean < 150
    np.save(root / '3tile.npy', np.zeros((4, 4)))
    assert 'has shape (4, 4)' in module.train_dataset[3]['skipped']
    np.save(root / 'y_other.npy', np.zeros(14))
    with pytest.raises(FileNotFoundError, match=r'exactly one y\*\.npy'):
        NAIPLandCoverDataModule(root).setup('fit')


def test_spacenet_parts_labeled_images_and_marks_black_regions(seed_data: Seed) -> None:
    root = seed_data('spacenet1')
    module = SpaceNet1DataModule(root, image_size=400)
    assert lengths(module) == [8, 1, 3, 12]
    assert module.bands == ('red', 'green', 'blue')
    sample = module.train_dataset[0]
    image, mask = sample['image'], sample['mask']
    assert image.shape == (3, 400, 400) and set(mask.unique().tolist()) == {0, 1, 255}
    assert (mask[:, 295:] == 255).all() and not (mask[:, :280] == 255).any()
    building = (mask == 1).float().mean()
    assert building == pytest.approx(120 * 90 / 406**2, abs=0.005)
    assert 'mask' not in module.predict_dataset[0]
    assert module.plot(sample) is not None
    plt.close('all')
    plain = SpaceNet1Dataset(root, size=32, ignore_black=None, bands=['blue'])
    assert 255 not in plain[0]['mask'].unique() and plain[0]['image'].shape == (1, 32, 32)
    with pytest.raises(FileNotFoundError, match=r'8band contains no SpaceNet 1 images'):
        SpaceNet1Dataset(root, image='8band')
    with pytest.raises(ValueError, match='image must be one of 3band, 8band'):
        SpaceNet1Dataset(root, image='pan')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split must be names or blocks, got 'x'"):
        SpaceNet1DataModule(root, split='x')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'val_split must be in \[0, 1\), got 1'):
        SpaceNet1DataModule(root, val_split=1)


class Listed(SpaceNet1Dataset):
    """As many names as the published training images, without the images; a block of ground holds 20."""

    def __init__(self, root: Path, split: str = 'train', **kwargs: Any) -> None:
        if split == 'test':
            raise FileNotFoundError
        self.files = [f'3band_AOI_1_RIO_img{number}.tif' for number in range(1, 6941)]

    def __len__(self) -> int:
        return len(self.files)

    def blocks(self, side: float) -> list[str]:
        return [str(number // 20) for number in range(len(self.files))]


@pytest.mark.parametrize('split', ['names', 'blocks'])
def test_spacenet_is_parted_in_the_papers_shares(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spacenet1, 'SpaceNet1Dataset', Listed)
    whole = SpaceNet1DataModule('', split=split, val_split=0)  # type: ignore[arg-type]
    held = SpaceNet1DataModule('', split=split)  # type: ignore[arg-type]
    parts = {part: whole.make(part).indices for part in ('train', 'test')}  # type: ignore[arg-type,union-attr]
    assert whole.make('val') is None and sorted(parts['train'] + parts['test']) == list(range(6940))
    assert [len(p) for p in parts.values()] == [5000, 1940]
    assert held.make('test').indices == whole.make('predict').indices == parts['test']  # type: ignore[union-attr]
    smaller = {part: held.make(part).indices for part in ('train', 'val')}  # type: ignore[arg-type,union-attr]
    assert sorted(smaller['train'] + smaller['val']) == parts['train'] and len(smaller['val']) == 500
    shared = {i // 20 for i in parts['train']} & {i // 20 for i in parts['test']}
    assert (len(shared) == 0) is (split == 'blocks')


def test_camelyon_parts_by_hospital_and_has_unlabeled_patches(seed_data: Seed) -> None:
    root = seed_data('camelyon17')
    module = Camelyon17DataModule(root)
    counts = lengths(module)
    # Hospitals are numbers modulo 5, and every fourth patch is held out of the training ones.
    training = [i for i in range(24) if i % 5 not in (1, 2) and i % 4]
    assert counts == [len(training), 5, 5, 5]
    labels = [int(module.train_dataset[k]['label']) for k in range(len(training))]
    assert labels == [i // 5 % 2 for i in training]
    assert module.train_dataset[0]['image'].shape == (3, 96, 96)
    unlabeled = Camelyon17DataModule(root, unlabeled=True)
    assert lengths(unlabeled)[0] == len([i for i in range(24) if i % 5 not in (1, 2)])
    assert 'label' not in unlabeled.train_dataset[0] and 'label' in unlabeled.val_dataset[0]
    with pytest.raises(FileNotFoundError, match=r'contains no folder camelyon17_v\*.*wilds package'):
        Camelyon17DataModule(root / 'patches').setup('fit')


def test_iwildcam_reads_both_downloads(seed_data: Seed, tmp_path: Path) -> None:
    root = seed_data('iwildcam')
    module = IWildCamDataModule(root, image_size=32)
    assert lengths(module) == [10, 4, 4, 4]
    assert module.train_dataset.classes == ('empty', 'jaguar', 'ocelot', 'tapir')
    assert (
        module.train_dataset[4]['image'].shape == (3, 32, 32) and int(module.train_dataset[4]['label']) == 1
    )
    unlabeled = IWildCamDataModule(root, unlabeled=True, image_size=32)
    assert lengths(unlabeled) == [22, 4, 4, 4] and 'label' not in unlabeled.train_dataset[0]
    (root / 'iwildcam_v2.0').rename(tmp_path / 'elsewhere')
    alone = IWildCamDataModule(root, unlabeled=True, image_size=32)
    alone.setup('fit')
    assert alone.val_dataset is None
    with pytest.raises(FileNotFoundError, match='iwildcam'):
        alone.setup('test')


@pytest.mark.parametrize(
    ('module', 'name', 'counts'),
    [(IWildCamDataModule, 'iwildcam', (2, 4)), (Camelyon17DataModule, 'camelyon17', (4, 5))],
)
def test_the_validation_part_of_wilds_can_be_what_is_scored(
    module: Any, name: str, counts: tuple[int, int], seed_data: Seed
) -> None:
    root = seed_data(name)
    papers, ours = module(root, image_size=32, scored='val'), module(root, image_size=32)
    assert (lengths(papers)[1], lengths(papers)[2]) == counts
    lengths(ours)
    assert papers.test_dataset.files == ours.val_dataset.files == papers.predict_dataset.files
    assert not set(papers.val_dataset.files) & {*papers.test_dataset.files, *papers.train_dataset.files}
    with pytest.raises(ValueError, match="scored must be test or val, got 'train'"):
        module(root, scored='train')


def test_torn_and_missing_images_are_named(seed_data: Seed) -> None:
    root = seed_data('iwildcam')
    (root / 'iwildcam_v2.0' / 'train' / '3.jpg').write_bytes(b'torn')
    module = IWildCamDataModule(root, image_size=32)
    module.setup('fit')
    assert '3.jpg' in module.train_dataset[3]['skipped']
    strict = IWildCamDataModule(root, image_size=32, strict=True)
    with pytest.raises(ValueError, match=r'3\.jpg'):
        strict.setup('fit')
    (root / 'iwildcam_v2.0' / 'train' / '0.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'the first image listed in .* does not exist: .*0\.jpg'):
        IWildCamDataModule(root).setup('fit')
    assert torch.isfinite(module.mean).all()
