"""Camelyon17 and iWildCam in the folder layout of the `wilds` package."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch.utils.data import Dataset

from explora_geo.datamodules.base import Augment, Part, TileDataModule
from explora_geo.datasets.base import TileDataset
from explora_geo.datasets.remote import PathLike

_Listed = tuple[list[Path], list[int] | None, Sequence[str]]


class WILDSDataModule(TileDataModule):
    """Base class of the WILDS data sets (https://arxiv.org/abs/2012.07421), which define their splits."""

    def __init__(
        self, root: PathLike, unlabeled: bool = False, scored: Literal['test', 'val'] = 'test', **kwargs: Any
    ) -> None:
        """Initialize a new WILDSDataModule instance.

        Args:
            root: Folder that the ``wilds`` package downloads to.
            unlabeled: Train on the unlabeled images; validation stays labeled where possible.
            scored: Test split: WILDS' ``test``, or ``val``, which the paper reports; ``id_val`` then
                validates, so that no setting is chosen on the reported images.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        if scored not in ('test', 'val'):
            raise ValueError(f'scored must be test or val, got {scored!r}')
        super().__init__(root, **kwargs)
        self.unlabeled, self.scored = unlabeled, scored

    @abstractmethod
    def listed(self, part: str, unlabeled: bool) -> _Listed:
        """Return files, labels and class names of a WILDS split."""

    def make(self, part: Part) -> Dataset[Any] | None:
        """Build a published split; predicting uses the scored one."""
        name, unlabeled = {'train': 'train', 'val': 'val'}.get(part, self.scored), False
        if part == 'train':
            unlabeled = self.unlabeled
        elif part == 'val' and self.scored == 'val':
            name = 'id_val'
        try:
            files, labels, classes = self.listed(name, unlabeled)
            if files and not files[0].is_file():  # catches a wrong root at once
                raise FileNotFoundError(f'the first image listed in {self.root} does not exist: {files[0]}')
            return TileDataset(self.root, files, labels, classes, **self.kwargs)
        except FileNotFoundError:
            if part == 'val' and self.unlabeled:  # only unlabeled images were downloaded
                return None
            raise

    def read(self, name: str, columns: Sequence[str]) -> tuple[Path, pd.DataFrame]:
        """Return the folder of a data set, in any version, and its table with these columns."""
        root = Path(self.root)
        folders = sorted(root.glob(f'{name}_v*')) if root.is_dir() else []
        if not folders:
            options = f"root_dir='{root}', download=True{', unlabeled=True' if 'unlabeled' in name else ''}"
            how = f"wilds.get_dataset('{name.split('_')[0]}', {options})"
            raise FileNotFoundError(
                f'{root} contains no folder {name}_v*: download it with the wilds package, {how}'
            )
        file = folders[-1] / 'metadata.csv'
        if not file.is_file():
            raise FileNotFoundError(f'{file} does not exist: the download is incomplete')
        try:
            table = pd.read_csv(file, usecols=list(columns), dtype={'patient': 'str'})
        except ValueError as error:  # includes pandas' own subclasses
            raise ValueError(f'{file} cannot be read ({str(error).strip()}): download it again') from error
        return folders[-1], table


class Camelyon17DataModule(WILDSDataModule):
    """Lymph node patches, 96 px, with or without tumor; hospital 1 validates, 2 tests."""

    augmentation = Augment((0.2, 1.0), horizontal_flip=True, vertical_flip=True, quarter_turns=True)

    def __init__(self, root: PathLike, image_size: int = 96, **kwargs: Any) -> None:
        """Initialize a new Camelyon17DataModule instance; see :class:`WILDSDataModule`."""
        super().__init__(root, image_size=image_size, **kwargs)

    def listed(self, part: str, unlabeled: bool) -> _Listed:
        """List the patches of a split's hospitals; ``id_val`` is held out from the training hospitals."""
        name = 'camelyon17_unlabeled' if unlabeled else 'camelyon17'
        columns = ['patient', 'node', 'x_coord', 'y_coord', 'center']
        folder, table = self.read(name, columns if unlabeled else [*columns, 'split', 'tumor'])
        chosen = table['center'] == {'val': 1, 'test': 2}.get(part, -1)
        if part in ('train', 'id_val'):
            chosen = ~table['center'].isin((1, 2))
            chosen &= True if unlabeled else table['split'] == (part == 'id_val')
        rows, files = table[chosen], []
        for row in rows.itertuples():
            node = f'patient_{row.patient}_node_{row.node}'
            files.append(folder / 'patches' / node / f'patch_{node}_x_{row.x_coord}_y_{row.y_coord}.png')
        labels = None if unlabeled else rows['tumor'].astype(int).tolist()
        return files, labels, ('normal', 'tumor')


class IWildCamDataModule(WILDSDataModule):
    """Camera trap images in 182 animal classes: validation and test use cameras at other locations."""

    def listed(self, part: str, unlabeled: bool) -> _Listed:
        """List the images of a split's cameras; ``id_val`` has other days of the training cameras."""
        if unlabeled:
            folder, table = self.read('iwildcam_unlabeled', ['uid'])
            return [folder / 'images' / f'{uid}.jpg' for uid in table['uid']], None, ()
        folder, table = self.read('iwildcam', ['split', 'filename', 'y'])
        rows, names = table[table['split'] == part], [f'class {i}' for i in range(int(table['y'].max()) + 1)]
        if (file := folder / 'categories.csv').is_file():
            known = pd.read_csv(file, index_col='y')['name']
            names = [str(known.get(i, name)) for i, name in enumerate(names)]
        return [folder / 'train' / name for name in rows['filename']], rows['y'].tolist(), names
