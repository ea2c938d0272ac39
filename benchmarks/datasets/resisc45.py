"""RESISC45 with TorchGeo's layout and splits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from explora_geo.bands import RGB
from explora_geo.datamodules.base import Part, TileDataModule
from explora_geo.datamodules.statistics import Statistics
from explora_geo.datasets.files import PathLike, subfolders
from explora_geo.datasets.folder import FolderDataset


class RESISC45Dataset(FolderDataset):
    """RESISC45: 31,500 aerial images of 256x256 pixels in 45 classes of scenes.

    The layout is TorchGeo's: ``root/NWPU-RESISC45/<class>/<class>_<n>.jpg`` and
    ``root/resisc45-<split>.txt`` with the names of a split. TorchGeo's own class can download both.

    If you use this dataset in your research, please cite https://doi.org/10.1109/jproc.2017.2675998.
    """

    directory = 'NWPU-RESISC45'

    def __init__(
        self,
        root: PathLike,
        split: Literal['train', 'val', 'test'] = 'train',
        bands: Sequence[str] | None = None,
        size: int | None = None,
        strict: bool = False,
        cache: bool = False,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Initialize a new RESISC45Dataset instance.

        Args:
            root: Folder of the images' folder and the split files.
            split: One of train, val or test.
            bands: Names of the bands to return, in any order.
            size: Side of the returned images; their own if None.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            cache: Whether to keep decoded images in memory.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If the images or the split file do not exist.
        """
        listed = Path(root) / f'resisc45-{split}.txt'
        if not listed.is_file():
            raise FileNotFoundError(
                f'There is no {listed}: TorchGeo downloads it with RESISC45({str(root)!r}, download=True).'
            )
        names = frozenset(listed.read_text(encoding='utf-8').split())
        folder = Path(root) / self.directory
        super().__init__(
            folder,
            bands=bands,
            file_bands=RGB,
            labeled=True,
            size=size,
            strict=strict,
            cache=cache,
            transforms=transforms,
            is_valid_file=lambda path: path.name in names,
        )
        # A class without an image in this split must not shift the labels of the others.
        self.relabel([path.name for path in subfolders(folder)])
        self.split = split


class RESISC45DataModule(TileDataModule):
    """LightningDataModule for RESISC45 with TorchGeo's splits and statistics."""

    nadir = True

    published = Statistics(
        dict(zip(RGB, (93.89391792, 97.11226906, 87.56775284), strict=True)),
        dict(zip(RGB, (51.84919672, 47.2365918, 47.06308786), strict=True)),
    )

    def __init__(self, root: PathLike, **kwargs: Any) -> None:
        """Initialize a new RESISC45DataModule instance.

        Args:
            root: Folder of ``NWPU-RESISC45`` and the split files.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        super().__init__(RESISC45Dataset, root, **kwargs)

    def make(self, part: Part) -> Dataset[Any]:
        """One of the published splits; the test part to predict."""
        return RESISC45Dataset(self.root, 'test' if part == 'predict' else part, **self.kwargs)
