"""Base class of all data modules: splits, statistics by band name, augmentation on the device, loaders."""

import copy
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, Sampler, Subset
from torchgeo.datamodules import NonGeoDataModule

from explora_geo.bands import match_bands
from explora_geo.datamodules.loader import EpochSampler, ReplacingCollate, ResumableLoader, SkippingDataLoader
from explora_geo.datamodules.statistics import SAMPLES, Statistic, Statistics, usable
from explora_geo.datasets import TileDataset, collate_skipping
from explora_geo.datasets.files import evenly_spaced
from explora_geo.datasets.images import BadTileError, read_header
from explora_geo.transforms import MultiCrop, ViewsConfig, normalization, training_view

#: Parts of a data set.
Part = Literal['train', 'val', 'test', 'predict']

#: Training images read to find the range of values.
LOOKED_AT = 16


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images on the device; None keeps the data module's default.

    Attributes:
        crop_scale: Smallest and largest share of an image's area in a training crop; by default 0.2 and 1, or
            0.5 and 1 with masks.
        horizontal_flip: Whether to flip training images left to right; on by default, except for time series.
        vertical_flip: Whether to flip training images top to bottom; off by default, except with masks.
        quarter_turns: Whether to rotate images by multiples of 90 degrees; off by default, except with masks.
        views: Several crops per training image, under the key ``views``, instead of one; if None, objectives
            that need several bring their own.
    """

    crop_scale: tuple[float, float] | None = None
    horizontal_flip: bool | None = None
    vertical_flip: bool | None = None
    quarter_turns: bool | None = None
    views: ViewsConfig | None = None

    def over(self, default: 'Augment') -> 'Augment':
        """Return these settings, filled in from *default* where they are None."""
        return replace(default, **_given(vars(self)))


class TileDataModule(NonGeoDataModule):
    """Base class of all data modules; subclasses make the data set of each part.

    Images are normalized and augmented in batches on the device, by TorchGeo's ``on_after_batch_transfer``.
    """

    kind: type[Any] = TileDataset  # class of the data sets
    #: Default augmentation of training images, which *augment* overrides.
    augmentation = Augment((0.2, 1.0), horizontal_flip=True, vertical_flip=False, quarter_turns=False)
    published: Statistics | None = None  # mean and standard deviation by band for 'auto'; estimated if None
    #: Whether images are taken at nadir and have no up: views are then rotated and flipped in all ways,
    #: unless their configuration says otherwise.
    nadir = False
    clip = False  # whether (x - mean) / std is clipped to [0, 1], as in SatMAE
    held_out = 0.0  # share of the training images held out for validation, evenly spaced
    #: Lowest and highest value of a few training images; None if none were read.
    value_range: tuple[float, float] | None = None
    #: Names of the bands of a batch, in order, and their statistics in units of the images, shape (C,); set
    #: by `setup`.
    bands: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        root: Any,
        bands: Sequence[str] | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        augment: Augment | None = None,
        statistics: Statistics | None = None,
        strict: bool = False,
        cache: bool = False,
        **former: Any,
    ) -> None:
        """Initialize a new TileDataModule instance.

        Args:
            root: Folder of the data set.
            bands: Names of the bands to use, in any order; all bands if None.
            image_size: Side of the images, pixels: the shorter side is resized and the center cropped;
                training takes random crops of the result.
            batch_size: Size of each mini-batch.
            num_workers: Number of data-loading processes.
            augment: Crops, flips and rotations of training images.
            statistics: Mean and standard deviation for normalization.
            strict: Whether to raise on an unusable image instead of skipping it.
            cache: Whether each worker keeps decoded tiles in memory, or the files of scenes open.
            **former: Arguments of earlier versions, now part of *augment* and *statistics*.

        Raises:
            ValueError: If an argument is out of range.
        """
        least_values = (
            ('image_size', image_size, 1),
            ('batch_size', batch_size, 1),
            ('num_workers', num_workers, 0),
        )
        for name, value, least in least_values:
            if value < least:
                raise ValueError(f'{name} must be at least {least}, got {value}')
        if not 0 <= self.held_out < 1:
            raise ValueError(f'val_split must be in [0, 1), got {self.held_out}')
        given = {'bands': bands, 'size': image_size, 'strict': strict, 'cache': cache}
        super().__init__(self.kind, batch_size, num_workers, **given)
        self.root, self.image_size = root, image_size
        augment, self.statistics = _move_former(augment, statistics, **former)
        self.augment = augment.over(self.augmentation)
        self.clip = self.clip if self.statistics.clip is None else self.statistics.clip
        crop = {name: value for name, value in vars(self.augment).items() if name != 'views'}
        self._crop: dict[str, Any] = {'image_size': image_size, **crop}
        # Checked before a long scan of the archive.
        training_view(torch.zeros(1), torch.ones(1), **self._crop)
        self._views_of_objective: ViewsConfig | None = None
        self.bands: tuple[str, ...] = ()
        self._chosen: list[int] | None = None
        self.collate_fn: Any = collate_skipping

    @abstractmethod
    def make(self, part: Part) -> Any:
        """Make the data set of a part, or return None if there is none."""

    def setup(self, stage: str) -> None:
        """Set up the datasets and band statistics; *stage* is fit, validate, test or predict.

        Raises:
            ValueError: If there is no usable training image.
        """
        if self.train_dataset is None:
            whole: Any = self.make('train')
            if whole is None:
                raise ValueError(f'{type(self).__name__} needs training images')
            self.dataset = whole  # also shown by the base class's `plot`
            train, held = hold_out(whole, self.held_out)
            bands = tuple(getattr(whole, 'dataset', whole).bands)
            images = usable(self._samples(train), self.root)
            if seen := list(islice(images, LOOKED_AT)):
                self.value_range = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
            mean, std = self.statistics.settle(bands, chain(seen, images), self.published)
            if self.clip:  # (x - mean) / std is the position in the range
                mean, std = mean - 2 * std, 4 * std
            self.mean, self.std, self.bands = mean, std, bands
            self._whole = bands, mean, std, self.clip
            self._set_transforms()
            self.train_dataset, self.val_dataset = train, held or self._shared(self.make('val'))
        if stage in {'test', 'predict'} and self.test_dataset is None:
            self.test_dataset = self._shared(self.make('test'))
        if stage == 'predict' and self.predict_dataset is None:
            self.predict_dataset = self.make('predict')

    def _shared(self, dataset: Any) -> Any:
        """Number the labels of a data set as in the first part that has all its classes, and return it."""
        known: Any = [d for d in (self.dataset, self.val_dataset) if isinstance(d, TileDataset)]
        if isinstance(dataset, TileDataset) and dataset.classes and known:
            first, names = known[0].classes, set(dataset.classes)
            # Labels mean the same everywhere: classes unknown in training are numbered after the known ones.
            merged = [*first, *(name for name in dataset.classes if name not in first)]
            classes = next((other.classes for other in known if names <= set(other.classes)), merged)
            if first or classes is not merged:
                dataset.relabel(classes)
        return dataset

    def _samples(self, train: Any) -> Iterator[Any]:
        """Yield samples to estimate statistics, or fewer for the range of values if statistics are known."""
        given = self.published or 'auto' not in (self.statistics.mean, self.statistics.std)
        return (train[i] for i in evenly_spaced(len(train), LOOKED_AT if given else SAMPLES))

    def _sampler(self, split: str) -> Sampler[Any] | list[Any] | None:
        """Choose the sampler of a split; None indexes the dataset by position."""
        return None

    def _dataloader_factory(self, split: str) -> Any:
        """Make the loader of a split, shuffled for training; return [] if there is no validation split."""
        dataset = getattr(self, f'{split}_dataset')
        if dataset is None and split == 'val':
            return []
        if dataset is None:
            raise ValueError(
                f'{type(self).__name__} has no {split} images; specify a {split} folder, and call '
                'setup() before requesting a loader'
            )
        sampler: Any = self._sampler(split)
        options: dict[str, Any] = {
            'batch_size': self.batch_size,
            'num_workers': self.num_workers,
            'pin_memory': torch.cuda.is_available(),
            'persistent_workers': self.num_workers > 0,
        }
        if split != 'train':
            return SkippingDataLoader(dataset, sampler=sampler, collate_fn=self.collate_fn, **options)
        # This process's share of an order determined by seed and epoch.
        seed, world = torch.initial_seed(), (1, 0)
        if self.trainer is not None:
            seed = self.trainer.strategy.broadcast(seed)
            world = self.trainer.world_size, self.trainer.global_rank
        order = EpochSampler(sampler or RandomSampler(dataset), seed, *world)
        return ResumableLoader(
            dataset,
            sampler=order,
            collate_fn=ReplacingCollate(self.collate_fn, dataset, order if sampler is not None else None),
            drop_last=len(order) > self.batch_size,  # a single incomplete batch is kept
            **options,
        )

    @property
    def given_statistics(self) -> bool:
        """Whether mean or std was given and not left to the data module."""
        return (self.statistics.mean, self.statistics.std) != ('auto', 'auto')

    @property
    def native_side(self) -> int | None:
        """Shorter side of the first training image's file, pixels; None if unknown."""
        dataset: Any = self.train_dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        try:
            return read_header(Path(dataset.files[0])).side
        except (BadTileError, OSError, TypeError, AttributeError):  # not set up, a pack, or unreadable
            return None

    def use_bands(self, wanted: Sequence[str]) -> None:
        """Select the bands of a model from batches by name, in the model's order.

        Raises:
            ValueError: If the images lack one.
        """
        if not self.bands:  # not set up, or by a class that does not name its bands
            return
        bands, mean, std, self.clip = self._whole
        chosen = match_bands(bands, wanted)
        self.mean, self.std, self.bands = mean[chosen], std[chosen], tuple(bands[i] for i in chosen)
        self._chosen = None if self.bands == bands else chosen
        self._set_transforms()

    def use_normalization(self, mean: Sequence[float], std: Sequence[float], clip: bool = False) -> None:
        """Normalize by a model's statistics, one value per band; *clip* limits the result to [0, 1]."""
        self.mean, self.std, self.clip = torch.tensor(mean), torch.tensor(std), clip
        self._set_transforms()

    def use_views(self, views: ViewsConfig | None) -> None:
        """Add several crops of every image to training batches, as an objective needs them; None for one.

        They are drawn from images normalized as for validation. The data module's own views take precedence.
        """
        self._views_of_objective = views
        if self.bands:  # else statistics are not known yet
            self._set_transforms()

    def plot(self, sample: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Plot a sample of a data set, or of a batch with the chosen bands."""
        shown: Any = copy.copy(getattr(self.dataset, 'dataset', self.dataset))
        if sample['image'].shape[-3] == len(self.bands):
            shown.bands = self.bands
        return shown.plot(sample, *args, **kwargs)

    def _set_transforms(self) -> None:
        """Make the batch transforms from bands, statistics and views."""
        self.aug = self._transform(normalization)
        views, flip, turn = self.augment.views, self.augment.vertical_flip, self.augment.quarter_turns
        views = views or self._views_of_objective
        if views is None:
            self.train_aug = self._transform(partial(training_view, **self._crop))
            return
        views = views.oriented(self.nadir or bool(flip), self.nadir or bool(turn))
        crop = MultiCrop(views, self.bands, self.mean, self.std)

        def add_views(batch: dict[str, Any]) -> dict[str, Any]:
            batch = self.aug(batch)
            return {**batch, 'views': crop(batch['image'])}

        self.train_aug = add_views

    def _transform(self, make: Callable[..., Any]) -> Any:
        """Make a transform of the chosen bands from their statistics."""
        made, chosen = self._make_transform(partial(make, clip=self.clip), self.mean, self.std), self._chosen
        if chosen is None:
            return made
        return lambda batch: made({**batch, 'image': batch['image'][..., chosen, :, :]})

    def _make_transform(self, make: Callable[[Tensor, Tensor], Any], mean: Tensor, std: Tensor) -> Any:
        return make(mean, std)


def hold_out(dataset: Any, share: float) -> tuple[Any, Any | None]:
    """Hold out an evenly spaced share, in [0, 1), of a data set for validation.

    Returns:
        The training and the held-out images; the data set itself and None if none are held out.

    Raises:
        ValueError: If no image is left to train on.
    """
    held = evenly_spaced(len(dataset), round(len(dataset) * share))
    if not held:
        return dataset, None
    kept = sorted(set(range(len(dataset))) - set(held))
    if not kept:
        raise ValueError(f'val_split={share} leaves none of the {len(dataset)} images for training')
    train, val = Subset(dataset, kept), Subset(dataset, held)
    # Reports name the classes.
    train.classes = val.classes = getattr(dataset, 'classes', ())  # type: ignore[attr-defined]
    return train, val


def _move_former(
    augment: Augment | Mapping[str, Any] | None,
    statistics: Statistics | Mapping[str, Any] | None,
    # The command line finds former keys of YAML files here.
    crop_scale: tuple[float, float] | None = None,
    horizontal_flip: bool | None = None,
    vertical_flip: bool | None = None,
    quarter_turns: bool | None = None,
    views: ViewsConfig | None = None,
    mean: Statistic | None = None,
    std: Statistic | None = None,
    normalise: Literal['clip', 'standard'] | None = None,
) -> tuple[Augment, Statistics]:
    """Move former arguments into their groups, with a warning; groups may be mappings."""
    if normalise not in (None, 'clip', 'standard'):
        raise ValueError(f'normalise must be clip or standard, got {normalise!r}')
    clip = None if normalise is None else normalise == 'clip'
    crops = _given(vars(Augment(crop_scale, horizontal_flip, vertical_flip, quarter_turns, views)))
    numbers = _given({'mean': mean, 'std': std, 'clip': clip})
    if crops or numbers:
        moved = [f'augment.{name}' for name in crops] + [f'statistics.{name}' for name in numbers]
        text = f'use {", ".join(moved)}; the old names will be removed in the next release'
        warnings.warn(f'arguments of data modules have moved: {text}', FutureWarning, stacklevel=4)
    augment = augment if isinstance(augment, Augment) else Augment(**(augment or {}))
    statistics = statistics if isinstance(statistics, Statistics) else Statistics(**(statistics or {}))
    return replace(augment, **crops), replace(statistics, **numbers)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
