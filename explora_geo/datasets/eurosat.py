"""EuroSAT from folders of JPEG or 13-band GeoTIFF tiles."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torchgeo.datasets import EuroSAT

from explora_geo.bands import RGB
from explora_geo.datasets.files import RASTER_SUFFIXES, find_images
from explora_geo.datasets.folder import FolderDataset
from explora_geo.datasets.remote import PathLike

#: Bands of the 13-band tiles in file order: B8A comes last, not after B08.
MS_BANDS = (*(f'B{i:02d}' for i in range(1, 13)), 'B8A')


class EuroSATDataset(FolderDataset):
    """EuroSAT: 27,000 Sentinel-2 tiles of 64x64 pixels in 10 land-cover classes.

    TorchGeo's own ``EuroSAT`` reads only the 13-band archive in its download layout with its own
    split files; this class reads the JPEG set too, any subset, and any split.

    The layout is ``root/<Class>/<Class>_<n>.<suffix>``, ``root/<split>/<Class>/...``, or that of
    TorchGeo's download with its split files. JPEG tiles have the bands red, green and blue (0 to 255),
    GeoTIFF tiles B01 to B12 and B8A (reflectance x 10,000).

    If you use this dataset in your research, please cite
    https://ieeexplore.ieee.org/document/8736785.
    """

    def __init__(
        self,
        root: PathLike,
        split: Literal['train', 'val', 'test'] | None = 'train',
        bands: Sequence[str] | None = None,
        split_file: PathLike | None = None,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new EuroSATDataset instance.

        Args:
            root: Folder of class folders, or of the folders ``train`` and ``test``.
            split: Part to read; all tiles if None.
            bands: Names of the bands to return, in any order; all bands if None.
            split_file: JSON object that lists tile names by split. Names are compared without
                extension, so one file serves JPEG and GeoTIFF tiles.
            download: Whether to download the 13-band tiles through TorchGeo if *root* lacks them.
            **kwargs: ``size``, ``strict``, ``cache`` and ``transforms`` of :class:`FolderDataset`.

        Raises:
            FileNotFoundError: If the folder or the split file does not exist, or no tile is found.
            ValueError: If the split cannot be determined, or bands do not match.
        """
        folder, members = Path(root), None
        download = download and not (folder / EuroSAT.base_dir).is_dir()
        for part in EuroSAT.splits if download else ():  # each split has its own list
            EuroSAT(str(root), part, download=True)
        downloaded = (folder / EuroSAT.base_dir).is_dir()
        if split is not None and (split_file is not None or downloaded):
            members = _read_split(Path(split_file or folder / EuroSAT.split_filenames[split]), split)
        elif split is not None and (folder / split).is_dir():
            folder = folder / split
        elif split is not None and folder.is_dir():
            raise ValueError(
                f'split={split!r} requires a folder {folder / split} or a split_file, but neither '
                'was found; pass split_file, or split=None for all tiles'
            )
        if downloaded:
            folder = folder / EuroSAT.base_dir
        files = find_images(folder)
        multispectral = bool(files) and files[0].suffix.lower() in RASTER_SUFFIXES
        super().__init__(
            folder,
            bands,
            MS_BANDS if multispectral else RGB,
            labeled=True,
            is_valid_file=None if members is None else lambda path: path.stem in members,
            **kwargs,
        )


def _read_split(path: Path, split: str) -> frozenset[str]:
    """Read a split's tile names, without extension, from a JSON object of lists or TorchGeo's list."""
    if not path.is_file():
        raise FileNotFoundError(f'the split file {path} does not exist; check the path, or set download=True')
    text = path.read_text(encoding='utf-8')
    if path.name in EuroSAT.split_filenames.values():
        return frozenset(Path(line.strip()).stem for line in text.splitlines())
    try:
        splits = json.loads(text)
    except ValueError as error:
        raise ValueError(f'the split file {path} is not valid JSON ({error})') from error
    if not isinstance(splits, dict) or not isinstance(splits.get(split), list):
        keys = sorted(splits) if isinstance(splits, dict) else type(splits).__name__
        raise ValueError(f'the split file {path} must list tile names under {split!r}, got {keys}')
    return frozenset(Path(name).stem for name in splits[split])
