"""What all data modules share: statistics by band name, views on the device, loaders."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, Subset
from torchgeo.datamodules import BaseDataModule

from ..bands import match_bands
from ..datasets import collate_skipping
from ..datasets.collate import DrawAgain, UsableLoader
from ..datasets.images import BadTileError, image_sides
from ..transforms import ClipNormalize, ViewsConfig, normalisation, on_batches, training_view, training_views
from .loader import EpochSampler, ResumableLoader
from .statistics import Statistic, estimate, resolve

#: Images whose lowest and highest value are looked at.
LOOKED_AT = 16


class ArchiveDataModule(BaseDataModule):
    """Base class of data modules over archives of unlabelled, or partly labelled, images.

    Images are normalised and augmented in batches on the device, by TorchGeo's
    ``on_after_batch_transfer``.

    Attributes:
        bands: Names of the bands of a batch, in order; known after :meth:`setup`.
        mean: Mean of each band in units of the images, shape (C,); known after :meth:`setup`.
        std: Standard deviation of each band, shape (C,); known after :meth:`setup`.
        clip: Whether what (x - mean) / std maps beyond [0, 1] is cut off, as SatMAE does.
        value_range: Lowest and highest value of a few training images; None if none was looked at.
        nadir: Whether images are taken straight from above and have no up: several crops of an image are then
            turned and mirrored in all ways, unless their views say otherwise.
    """

    nadir = False
    clip = False
    value_range: tuple[float, float] | None = None

    def __init__(
        self,
        dataset_class: type[Dataset[Any]],
        image_size: int,
        batch_size: int,
        num_workers: int,
        mean: Statistic,
        std: Statistic,
        crop_scale: tuple[float, float],
        horizontal_flip: bool,
        vertical_flip: bool,
        quarter_turns: bool,
        views: ViewsConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new ArchiveDataModule instance.

        Args:
            dataset_class: Class used to make datasets.
            image_size: Side of the images in a batch.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band, by name, in order, ``'imagenet'`` or ``'auto'``.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training images left to right.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            views: Several crops of every training image instead of one, under the key ``views``.
            **kwargs: Arguments of the dataset.

        Raises:
            ValueError: If a size or number is out of range.
        """
        for name, value, least in (
            ('image_size', image_size, 1),
            ('batch_size', batch_size, 1),
            ('num_workers', num_workers, 0),
        ):
            if value < least:
                raise ValueError(f'{name} must be at least {least}, got {value}.')
        super().__init__(dataset_class, batch_size, num_workers, **kwargs)
        self.image_size = image_size
        self.mean_source = mean
        self.std_source = std
        self.crop_scale = (float(crop_scale[0]), float(crop_scale[1]))
        self.horizontal_flip = horizontal_flip
        self.vertical_flip = vertical_flip
        self.quarter_turns = quarter_turns
        self.views = views
        self._views_of_objective: ViewsConfig | None = None
        self.bands: tuple[str, ...] = ()
        self._all_bands: tuple[str, ...] = ()
        self._chosen: list[int] = []
        self.collate_fn = collate_skipping
        # Checked now rather than after a long scan of the archive.
        training_view(torch.zeros(1), torch.ones(1), image_size, self.crop_scale)

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
            collate = DrawAgain(collate, dataset, *known)
            sampler = order
            # A single incomplete batch is all this process has; dropping it would leave nothing.
            drop_last = len(order) > self.batch_size
        return (ResumableLoader if training else UsableLoader)(
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
        """Training data by seed and epoch, of which this process gets its share."""
        seed, trainer = torch.initial_seed(), self.trainer
        if trainer is None:
            return EpochSampler(sampler, seed)
        return EpochSampler(
            sampler, trainer.strategy.broadcast(seed), trainer.world_size, trainer.global_rank
        )

    def _set_statistics(
        self,
        bands: Sequence[str],
        images: Iterable[Tensor],
        mean: Statistic | None = None,
        std: Statistic | None = None,
    ) -> None:
        """Settle mean and std once, and make the views from them.

        Args:
            bands: Names of the bands of a batch.
            images: Images to estimate from, each of shape (C, H, W); read only if needed.
            mean: Values that replace ``'auto'``.
            std: Likewise.
        """
        if self.bands:
            return
        sources: dict[str, Statistic] = {'mean': self.mean_source, 'std': self.std_source}
        for name, known in (('mean', mean), ('std', std)):
            if known is not None and sources[name] == 'auto':
                sources[name] = known
        # What is given is checked before what is not takes time to estimate.
        values = {
            'mean': None if sources['mean'] == 'auto' else resolve(sources['mean'], bands, 'mean'),
            'std': None if sources['std'] == 'auto' else resolve(sources['std'], bands, 'std'),
        }
        images = iter(images)
        seen = list(islice(images, LOOKED_AT))
        if seen:
            self.value_range = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
        if values['mean'] is None or values['std'] is None:
            estimated = dict(zip(('mean', 'std'), estimate(chain(seen, images)), strict=True))
            values = {name: estimated[name] if v is None else v for name, v in values.items()}
        self.mean, self.std = cast(Tensor, values['mean']), cast(Tensor, values['std'])
        self.bands = self._all_bands = tuple(bands)
        self._chosen = list(range(len(bands)))
        self._own_statistics = self.mean, self.std, self.clip
        self._set_transforms()

    @property
    def given_statistics(self) -> bool:
        """Whether mean and std were given, and not left to the data module."""
        return not (self.mean_source == 'auto' and self.std_source == 'auto')

    @property
    def native_side(self) -> int | None:
        """Shorter side of the first training image as its file has it, pixels; None if that is not known."""
        dataset: Any = self.train_dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        files = getattr(dataset, 'files', None) or ()
        try:
            return min(image_sides(Path(files[0]))) if files else None
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
        """Normalize as the images that a model learned from.

        Args:
            mean: Mean of each band, in the order of :attr:`bands`.
            std: Standard deviation of each band.
            clip: Whether to cut off what lies beyond [0, 1].
        """
        self.mean, self.std, self.clip = torch.tensor(mean), torch.tensor(std), clip
        self._set_transforms()

    def plot(self, *args: Any, **kwargs: Any) -> Any:
        """Show a sample of a batch or of a data set; bands that batches leave out are drawn as 0."""
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
            views: What to draw from images that are normalised as for validation; None for one view of each.
        """
        self._views_of_objective = views
        if self.bands:  # else statistics are not known yet
            self._set_transforms()

    def _set_transforms(self) -> None:
        """Make the transforms of batches from bands, statistics and views."""
        self.aug = self._selected(self._normaliser(self.mean, self.std))
        views = self.views or self._views_of_objective
        if views is None:
            self.train_aug = self._selected(self._single_view(self.mean, self.std))
        else:
            views = views.oriented(self.nadir or self.vertical_flip, self.nadir or self.quarter_turns)
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

    def _normaliser(self, mean: Tensor, std: Tensor) -> Any:
        """Normalisation alone, by these statistics."""
        return on_batches(ClipNormalize(mean, mean + std)) if self.clip else normalisation(mean, std)

    def _single_view(self, mean: Tensor, std: Tensor) -> Any:
        """One view of each training image."""
        if not self.clip:
            return self._view(mean, std)
        # As in SatMAE before the crop, whose interpolation then sees the values that count.
        return nn.Sequential(
            self._normaliser(mean, std), self._view(torch.zeros_like(mean), torch.ones_like(std))
        )

    def _view(self, mean: Tensor, std: Tensor) -> Any:
        """A training view by these statistics."""
        flips = self.horizontal_flip, self.vertical_flip, self.quarter_turns
        return training_view(mean, std, self.image_size, self.crop_scale, *flips)
