"""Camelyon17 and iWildCam in the folders that the `wilds` package downloads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch.utils.data import Dataset

from explora_geo.datamodules.base import Part, TileDataModule
from explora_geo.datamodules.settings import Augment
from explora_geo.datasets.files import PathLike
from explora_geo.datasets.listed import ListedDataset

Transforms = Callable[[dict[str, Any]], dict[str, Any]]


def _table(root: Path, name: str, columns: Sequence[str], **kwargs: Any) -> tuple[Path, pd.DataFrame]:
    """The folder of a data set of any version, and its table with these columns."""
    folders = sorted(root.glob(f'{name}_v*')) if root.is_dir() else []
    if not folders:
        raise FileNotFoundError(
            f'There is no folder {name}_v* in {root}: download the data with the wilds package, for example '
            f"python -c \"from wilds import get_dataset; get_dataset('{name.split('_')[0]}', "
            f"root_dir='{root}', download=True{', unlabeled=True' if 'unlabeled' in name else ''})\"."
        )
    file = folders[-1] / 'metadata.csv'
    if not file.is_file():
        raise FileNotFoundError(f'There is no {file}: the download is incomplete.')
    try:
        table = pd.read_csv(file, **kwargs)
    except ValueError as error:  # also of pandas' own kinds
        raise ValueError(f'{file} is no table ({str(error).strip()}): download it again.') from error
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise ValueError(f'{file} lacks the columns {", ".join(lacking)}: download it again.')
    return folders[-1], table


class Camelyon17Dataset(ListedDataset):
    """Camelyon17-WILDS: 96 px patches of lymph nodes from five hospitals, with or without tumour.

    Hospital 1 is the validation and hospital 2 the test part; the others train. Unlabelled patches are
    parted in the same way.

    If you use this dataset in your research, please cite https://arxiv.org/abs/2012.07421.
    """

    def __init__(
        self,
        root: PathLike,
        split: Literal['train', 'id_val', 'val', 'test'] = 'train',
        unlabelled: bool = False,
        bands: Sequence[str] | None = None,
        size: int | None = None,
        strict: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        """Initialize a new Camelyon17Dataset instance.

        Args:
            root: Folder that holds ``camelyon17_v1.0`` or ``camelyon17_unlabeled_v1.0``.
            split: Part; ``id_val`` are held-out patches of the training hospitals.
            unlabelled: Read the unlabelled patches (``train_unlabeled`` and so on).
            bands: Names of the bands to return, in any order.
            size: Side of the returned images; their own if None.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If the folder, the table or the images do not exist.
            ValueError: If there is no such split.
        """
        known = ('train', 'val', 'test') if unlabelled else ('train', 'id_val', 'val', 'test')
        if split not in known:
            raise ValueError(f'split must be one of {", ".join(known)}, got {split!r}.')
        name = 'camelyon17_unlabeled' if unlabelled else 'camelyon17'
        columns = ['patient', 'node', 'x_coord', 'y_coord', 'center']
        columns += [] if unlabelled else ['split', 'tumor']
        folder, table = _table(Path(root), name, columns, index_col=0, dtype={'patient': 'str'})
        hospital = {'val': table['center'] == 1, 'test': table['center'] == 2}
        training = ~(hospital['val'] | hospital['test'])
        if split in hospital:
            chosen = hospital[split]
        elif unlabelled:
            chosen = training
        else:
            chosen = training & (table['split'] == (1 if split == 'id_val' else 0))
        rows = table[chosen]
        files = [
            folder
            / f'patches/patient_{patient}_node_{node}'
            / f'patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png'
            for patient, node, x, y in zip(
                rows['patient'], rows['node'], rows['x_coord'], rows['y_coord'], strict=True
            )
        ]
        labels = None if unlabelled else rows['tumor'].astype(int).tolist()
        super().__init__(root, files, labels, ('normal', 'tumor'), bands, size, strict, transforms)


class IWildCamDataset(ListedDataset):
    """iWildCam2020-WILDS: images of camera traps in 182 classes of animals.

    If you use this dataset in your research, please cite https://arxiv.org/abs/2012.07421.
    """

    def __init__(
        self,
        root: PathLike,
        split: Literal['train', 'id_val', 'val', 'id_test', 'test'] = 'train',
        unlabelled: bool = False,
        bands: Sequence[str] | None = None,
        size: int | None = 224,
        strict: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        """Initialize a new IWildCamDataset instance.

        Args:
            root: Folder that holds ``iwildcam_v2.0`` or ``iwildcam_unlabeled_v1.0``.
            split: Part; ``id_`` parts are other days of the training cameras. Unlabelled images are one
                part.
            unlabelled: Read the unlabelled images (``extra_unlabeled``).
            bands: Names of the bands to return, in any order.
            size: Side of the returned images, which differ in size.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If the folder, the table or the images do not exist.
            ValueError: If there is no such split.
        """
        known = ('train', 'id_val', 'val', 'id_test', 'test')
        if split not in known:
            raise ValueError(f'split must be one of {", ".join(known)}, got {split!r}.')
        if unlabelled:
            folder, table = _table(Path(root), 'iwildcam_unlabeled', ['uid'])
            files = [folder / 'images' / f'{uid}.jpg' for uid in table['uid']]
            super().__init__(root, files, None, (), bands, size, strict, transforms)
            return
        folder, table = _table(Path(root), 'iwildcam', ['split', 'filename', 'y'])
        rows = table[table['split'] == split]
        files = [folder / 'train' / name for name in rows['filename']]
        classes = _class_names(folder, int(table['y'].max()) + 1)
        super().__init__(root, files, rows['y'].tolist(), classes, bands, size, strict, transforms)


def _class_names(folder: Path, count: int) -> list[str]:
    """Names of the classes from the table of categories, where it names them."""
    names = [f'class {i}' for i in range(count)]
    file = folder / 'categories.csv'
    if file.is_file():
        categories = pd.read_csv(file)
        for label, name in zip(categories['y'], categories['name'], strict=True):
            if 0 <= label < count:
                names[int(label)] = str(name)
    return names


class Camelyon17DataModule(TileDataModule):
    """LightningDataModule for Camelyon17 of WILDS: another hospital validates, a third one tests."""

    augmentation = Augment((0.2, 1.0), horizontal_flip=True, vertical_flip=True, quarter_turns=True)

    def __init__(
        self,
        root: PathLike,
        unlabelled: bool = False,
        scored: Literal['test', 'val'] = 'test',
        image_size: int = 96,
        **kwargs: Any,
    ) -> None:
        """Initialize a new Camelyon17DataModule instance.

        Args:
            root: Folder that the ``wilds`` package downloads to.
            unlabelled: Train on ``train_unlabeled``, for pre-training; validation stays labelled where the
                labelled data is there.
            scored: Part that tests: WILDS' ``test``, or ``val``, which the paper reports; then ``id_val``
                validates, so that nothing is chosen on what is reported.
            image_size: Side of the images; patches have 96 pixels.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        super().__init__(Camelyon17Dataset, root, image_size=image_size, **kwargs)
        self.unlabelled, self.scored = unlabelled, _check_scored(scored)

    def make(self, part: Part) -> Dataset[Any] | None:
        """One of the published splits; what is scored also to predict."""
        if part == 'train':
            return Camelyon17Dataset(self.root, 'train', self.unlabelled, **self.kwargs)
        return _labelled(Camelyon17Dataset, self, part)


class IWildCamDataModule(TileDataModule):
    """LightningDataModule for iWildCam of WILDS: cameras of other places validate and test."""

    def __init__(
        self, root: PathLike, unlabelled: bool = False, scored: Literal['test', 'val'] = 'test', **kwargs: Any
    ) -> None:
        """Initialize a new IWildCamDataModule instance.

        Args:
            root: Folder that the ``wilds`` package downloads to.
            unlabelled: Train on ``extra_unlabeled``, for pre-training; validation stays labelled where the
                labelled data is there.
            scored: Part that tests: WILDS' ``test``, or ``val``, which the paper reports; then ``id_val``
                validates, so that nothing is chosen on what is reported.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        super().__init__(IWildCamDataset, root, **kwargs)
        self.unlabelled, self.scored = unlabelled, _check_scored(scored)

    def make(self, part: Part) -> Dataset[Any] | None:
        """One of the published splits; what is scored also to predict."""
        if part == 'train':
            return IWildCamDataset(self.root, 'train', self.unlabelled, **self.kwargs)
        return _labelled(IWildCamDataset, self, part)


def _check_scored(scored: str) -> str:
    if scored not in ('test', 'val'):
        raise ValueError(f'scored must be test or val, got {scored!r}.')
    return scored


def _labelled(dataset_class: Any, module: Any, part: Part) -> Dataset[Any] | None:
    """A labelled part; pre-training goes without one where only unlabelled images were downloaded."""
    validating = 'val' if module.scored == 'test' else 'id_val'
    try:
        found: Dataset[Any] = dataset_class(
            module.root, validating if part == 'val' else module.scored, **module.kwargs
        )
    except FileNotFoundError:
        if module.unlabelled and part == 'val':
            return None
        raise
    return found
