"""Base of all data modules: splits, statistics by band name, augmentation on the device, loaders."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, Subset
from torchgeo.datamodules import BaseDataModule

from ..bands import match_bands
from ..datasets import TileDataset, collate_skipping
from ..datasets.collate import ReplacingCollate, SkippingDataLoader
from ..datasets.files import evenly_spaced
from ..datasets.images import BadTileError, read_header
from ..transforms import ClipNormalize, ViewsConfig, normalization, on_batches, training_view, training_views
from .loader import EpochSampler, ResumableLoader
from .settings import Augment, move_former
from .statistics import SAMPLES, Statistics, usable

#: Parts of a data set.
Part = Literal['train', 'val', 'test', 'predict']

#: Images whose lowest and highest value are looked at.
LOOKED_AT = 16


class TileDataModule(BaseDataModule):
    """Base class of all data modules: sub-classes make the data set of each part.

    Images are normalized and augmented in batches on the device, by TorchGeo's ``on_after_batch_transfer``.

    Attributes:
        augmentation: What training images go through unless *augment* says otherwise.
        published: Mean and standard deviation by band for 'auto', or None to estimate them.
        held_out: Share of the training images that validates instead, evenly spaced.
        bands: Names of the bands of a batch, in order; known after :meth:`setup`.
        mean: Mean of each band in units of the images, shape (C,); known after :meth:`setup`.
        std: Standard deviation of each band, shape (C,); known after :meth:`setup`.
        clip: Whether what (x - mean) / std maps beyond [0, 1] is cut off, as SatMAE does.
        value_range: Lowest and highest value of a few training images; None if none was looked at.
        nadir: Whether images are taken straight from above and have no up: several crops of an image are then
            turned and mirrored in all ways, unless their views say otherwise.
    """

    augmentation = Augment((0.2, 1.0), horizontal_flip=True, vertical_flip=False, quarter_turns=False)
    published: Statistics | None = None
    nadir = False
    clip = False
    held_out = 0.0
    value_range: tuple[float, float] | None = None

    def __init__(
        self,
        dataset_class: type[Dataset[Any]],
        root: Any,
        bands: Sequence[str] | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: Augment | None = None,
        statistics: Statistics | None = None,
        strict: bool = False,
        dataset: Mapping[str, Any] | None = None,
        **former: Any,
    ) -> None:
        """Initialize a new TileDataModule instance.

        Args:
            dataset_class: Class used to make datasets.
            root: Folder of the data set.
            bands: Names of the bands to use, in any order; all bands if None.
            image_size: Side of the images, pixels: the shorter side is resized and the center cropped;
                training takes random crops of that.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            augment: Crops, flips and turns of training images.
            statistics: Mean and standard deviation by which images are normalized.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            dataset: Further arguments of the datasets.
            **former: Arguments of earlier versions, which are part of *augment* and *statistics* now.

        Raises:
            ValueError: If an argument is out of range.
        """
        for name, value, least in (
            ('image_size', image_size, 1),
            ('batch_size', batch_size, 1),
            ('num_workers', num_workers, 0),
        ):
            if value < least:
                raise ValueError(f'{name} must be at least {least}, got {value}.')
        if not 0 <= self.held_out < 1:
            raise ValueError(f'val_split must be at least 0 and below 1, got {self.held_out}.')
        given = {'bands': bands, 'size': image_size, 'strict': strict, **(dataset or {})}
        super().__init__(dataset_class, batch_size, num_workers, **given)
        self.root, self.image_size = root, image_size
        augment, statistics = move_former(augment, statistics, **former)
        self.augment, self.statistics = augment.over(self.augmentation), statistics
        self.clip = self.clip if statistics.clip is None else statistics.clip
        self._views_of_objective: ViewsConfig | None = None
        self.bands: tuple[str, ...] = ()
        self._all_bands: tuple[str, ...] = ()
        self._chosen: list[int] = []
        self.collate_fn = collate_skipping
        # Checked before, not after, a long scan of the archive.
        training_view(torch.zeros(1), torch.ones(1), image_size, self._crop_scale)

    @abstractmethod
    def make(self, part: Part) -> Dataset[Any] | None:
        """Make the data set of a part, or return None if there is none."""

    def setup(self, stage: str) -> None:
        """Set up datasets, and the statistics of the bands.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If there is no training image, or none can be used.
        """
        if self.train_dataset is None:
            whole: Any = self.make('train')
            if whole is None:
                raise ValueError(f'{type(self).__name__} needs training images.')
            self.dataset = whole  # also what `plot` of the base class shows
            train, held = hold_out(whole, self.held_out)
            bands = getattr(whole, 'dataset', whole).bands
            self._set_statistics(bands, usable(self._samples(train), self.root))
            self.train_dataset, self.val_dataset = train, held or self._shared(self.make('val'))
        if stage in {'test', 'predict'} and self.test_dataset is None:
            self.test_dataset = self._shared(self.make('test'))
        if stage == 'predict' and self.predict_dataset is None:
            self.predict_dataset = self.make('predict')

    def _shared(self, dataset: Any) -> Any:
        """The data set of a part, with labels numbered as in the first part that has all its classes."""
        known: Any = [d for d in (self.dataset, self.val_dataset) if isinstance(d, TileDataset)]
        if not isinstance(dataset, TileDataset) or not dataset.classes or not known:
            return dataset
        for other in known:
            if set(dataset.classes) <= set(other.classes):
                dataset.relabel(other.classes)
                return dataset
        # Labels mean the same everywhere: what training does not know is numbered after what it does.
        first = known[0].classes
        if first:
            dataset.relabel([*first, *(name for name in dataset.classes if name not in first)])
        return dataset

    def _samples(self, train: Any) -> Iterator[Any]:
        """Samples for estimating statistics, or only the range of values if these are known."""
        given = self.published or 'auto' not in (self.statistics.mean, self.statistics.std)
        return (train[i] for i in evenly_spaced(len(train), LOOKED_AT if given else SAMPLES))

    def train_dataloader(self) -> DataLoader[Any]:
        """Make the loader of training images, shuffled."""
        return self._loader('train')

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Make the loader of validation images, or no loader if there are none."""
        return self._loader('val') if self.val_dataset is not None else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Make the loader of test images."""
        return self._loader('test')

    def predict_dataloader(self) -> DataLoader[Any]:
        """Make the loader of images to predict on, in order."""
        return self._loader('predict')

    def _sampler(self, split: str) -> Sampler[Any] | None:
        """Choose how to index the dataset of a split; by position if None."""
        return None

    def _loader(self, split: str) -> DataLoader[Any]:
        dataset = getattr(self, f'{split}_dataset')
        if dataset is None:
            raise ValueError(
                f'{type(self).__name__} has no {split} images; give it a {split} folder, and call '
                'setup() before asking for a loader.'
            )
        sampler = self._sampler(split)
        drop_last = False
        training = split == 'train'
        collate: Any = self.collate_fn
        if training:
            order = self._in_order(RandomSampler(dataset) if sampler is None else sampler)
            known = () if sampler is None else (order.place, len(order))
            collate = ReplacingCollate(collate, dataset, *known)
            sampler = order
            # Dropping a single incomplete batch would leave nothing.
            drop_last = len(order) > self.batch_size
        return (ResumableLoader if training else SkippingDataLoader)(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _in_order(self, sampler: Sampler[Any]) -> EpochSampler:
        """This process's share of an order that seed and epoch determine."""
        seed, trainer = torch.initial_seed(), self.trainer
        if trainer is None:
            return EpochSampler(sampler, seed)
        return EpochSampler(
            sampler, trainer.strategy.broadcast(seed), trainer.world_size, trainer.global_rank
        )

    def _set_statistics(self, bands: Sequence[str], images: Iterable[Tensor]) -> None:
        """Set mean and std, estimated from these images unless known, and build the transforms."""
        images = iter(images)
        seen = list(islice(images, LOOKED_AT))
        if seen:
            self.value_range = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
        mean, std = self.statistics.settle(bands, chain(seen, images), self.published)
        if self.clip:  # (x - mean) / std is the position in the range
            mean, std = mean - 2 * std, 4 * std
        self.mean, self.std = mean, std
        self.bands = self._all_bands = tuple(bands)
        self._chosen = list(range(len(bands)))
        self._own_statistics = self.mean, self.std, self.clip
        self._set_transforms()

    @property
    def given_statistics(self) -> bool:
        """Whether mean and std were given, and not left to the data module."""
        return self.statistics.given

    @property
    def _crop_scale(self) -> tuple[float, float]:
        low, high = self.augment.crop_scale or (1.0, 1.0)
        return float(low), float(high)

    @property
    def native_side(self) -> int | None:
        """Shorter side of the first training image's file, pixels; None if unknown."""
        dataset: Any = self.train_dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        files = getattr(dataset, 'files', None) or ()
        try:
            return read_header(Path(files[0])).side if files else None
        except (BadTileError, OSError, TypeError):  # of a pack, or skipped when it is read
            return None

    def use_bands(self, wanted: Sequence[str]) -> None:
        """Give batches the bands of a model, in its order, by name.

        Args:
            wanted: Bands of the model.

        Raises:
            ValueError: If the images lack one.
        """
        if not self.bands:  # not set up, or by a class that says nothing of its bands
            return
        self._chosen = match_bands(self._all_bands, wanted)
        self.bands = tuple(self._all_bands[i] for i in self._chosen)
        mean, std, self.clip = self._own_statistics
        self.mean, self.std = mean[self._chosen], std[self._chosen]
        self._set_transforms()

    def use_normalization(self, mean: Sequence[float], std: Sequence[float], clip: bool = False) -> None:
        """Normalize by the statistics of a model's training images.

        Args:
            mean: Mean of each band, in the order of :attr:`bands`.
            std: Standard deviation of each band.
            clip: Whether to cut off what lies beyond [0, 1].
        """
        self.mean, self.std, self.clip = torch.tensor(mean), torch.tensor(std), clip
        self._set_transforms()

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """Plot a sample of a batch or data set; bands that batches leave out are drawn as 0."""
        sample, rest = args[0], args[1:]
        image = sample['image']
        if len(self._chosen) == image.shape[-3] and self._chosen != list(range(len(self._all_bands))):
            whole = image.new_zeros(*image.shape[:-3], len(self._all_bands), *image.shape[-2:])
            whole[..., self._chosen, :, :] = image
            sample = {**sample, 'image': whole}
        return super().plot(sample, *rest, **kwargs)

    def use_views(self, views: ViewsConfig | None) -> None:
        """Give training batches several crops of every image; an objective calls this before it trains.

        Views that the data module was made with come first.

        Args:
            views: What to draw from images that are normalized as for validation; None for one view of each.
        """
        self._views_of_objective = views
        if self.bands:  # else statistics are not known yet
            self._set_transforms()

    def _set_transforms(self) -> None:
        """Make the transforms of batches from bands, statistics and views."""
        self.aug = self._selected(self._normalizer(self.mean, self.std))
        views = self.augment.views or self._views_of_objective
        if views is None:
            self.train_aug = self._selected(self._single_view(self.mean, self.std))
        else:
            flip, turn = self.augment.vertical_flip, self.augment.quarter_turns
            views = views.oriented(self.nadir or bool(flip), self.nadir or bool(turn))
            self.train_aug = training_views(views, self.bands, self.aug, self.mean, self.std)

    def _selected(self, transform: Any) -> Any:
        """A transform of the bands that are chosen."""
        if self._chosen == list(range(len(self._all_bands))):
            return transform
        chosen = self._chosen

        def select(batch: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = transform({**batch, 'image': batch['image'][..., chosen, :, :]})
            return found

        return select

    def _normalizer(self, mean: Tensor, std: Tensor) -> Any:
        """Normalization alone, by these statistics."""
        return on_batches(ClipNormalize(mean, mean + std)) if self.clip else normalization(mean, std)

    def _single_view(self, mean: Tensor, std: Tensor) -> Any:
        """One view of each training image."""
        if not self.clip:
            return self._view(mean, std)
        # As in SatMAE before the crop, whose interpolation then sees the values that count.
        return nn.Sequential(
            self._normalizer(mean, std), self._view(torch.zeros_like(mean), torch.ones_like(std))
        )

    def _view(self, mean: Tensor, std: Tensor) -> Any:
        """A training view by these statistics."""
        names = ('horizontal_flip', 'vertical_flip', 'quarter_turns')
        flips = (bool(getattr(self.augment, name)) for name in names)
        return training_view(mean, std, self.image_size, self._crop_scale, *flips)


def hold_out(dataset: Any, share: float) -> tuple[Any, Any | None]:
    """Hold out an evenly spaced share of a data set for validation.

    Args:
        dataset: Any data set of a length.
        share: Share held out, in [0, 1).

    Returns:
        The images to train on, and those held out; the data set itself and None if these are none.

    Raises:
        ValueError: If none is left to train on.
    """
    held = evenly_spaced(len(dataset), round(len(dataset) * share))
    if not held:
        return dataset, None
    kept = sorted(set(range(len(dataset))) - set(held))
    if not kept:
        raise ValueError(f'val_split={share} leaves none of {len(dataset)} images for training.')
    return Subset(dataset, kept), Subset(dataset, held)
