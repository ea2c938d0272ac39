"""Data modules for commands: a folder of parts, or the `data` section of a YAML file."""

from pathlib import Path
from typing import Any

from explora_geo.commands.configuration import read_yaml


def open_data(data: Path, image_size: int, bands: tuple[str, ...], **kwargs: Any) -> Any:
    """Make a data module.

    Args:
        data: Folder with `train/` and `test/`, and optionally `val/`, of class folders; or a YAML file with
            `class_path` and `init_args`, or a whole configuration of `explora-geo fit`.
        image_size: Side of the images of a folder.
        bands: Names of the bands of a folder.
        **kwargs: Further arguments of a folder's data module.

    Returns:
        The data module, not set up.

    Raises:
        FileNotFoundError: If there is no such file or folder, or a part is missing.
        ValueError: If the YAML file describes no data module.
    """
    from explora_geo.datamodules import FolderDataModule
    from explora_geo.datasets.files import find_images

    if not data.exists():
        raise FileNotFoundError(f'no data {data}: give a folder with train/ and test/, or a YAML file')
    if data.is_file():
        return _configured(data)
    missing = [part for part in ('train', 'test') if not (data / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f'{data} has no folder {" and no ".join(missing)}: put class folders into {data}/train and '
            f'{data}/test, or give a YAML file that names a data module'
        )
    for part in ('train', 'test'):
        empty = [p.name for p in sorted((data / part).iterdir()) if p.is_dir() and not find_images(p)]
        if empty:
            raise ValueError(
                f'the class folders {", ".join(empty)} in {data / part} hold no image: fill or remove them'
            )
    val = data / 'val'
    return FolderDataModule(
        data / 'train',
        val_root=val if val.is_dir() else None,
        test_root=data / 'test',
        bands=bands,
        image_size=image_size,
        **kwargs,
    )


def image_side(data: Path) -> int:
    """Shorter side of the first image of a folder, or of the images of a YAML file's data module.

    Args:
        data: As of `open_data`.

    Returns:
        Pixels; 224, DINOv2's, where nothing says so.
    """
    from explora_geo.datasets.files import find_images
    from explora_geo.datasets.images import BadTileError, image_sides
    from explora_geo.models.builders import DINOV2_SIZE

    if data.is_file():
        return getattr(_configured(data), 'image_size', DINOV2_SIZE)
    for path in find_images(data / 'train') if (data / 'train').is_dir() else ():
        try:
            return min(image_sides(path))
        except BadTileError:
            continue
    return DINOV2_SIZE


def _configured(file: Path) -> Any:
    from jsonargparse import ArgumentParser
    from torchgeo.datamodules import BaseDataModule

    content = read_yaml(file)
    section = content.get('data', content)
    if not isinstance(section, dict) or 'class_path' not in section:
        raise ValueError(f'{file} describes no data module: it needs class_path, or data with class_path')
    import explora_geo.datamodules  # noqa: F401 - lets a YAML name classes by their class name alone

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, 'data')
    # Renamed in jsonargparse 4.49
    instantiate = getattr(parser, 'instantiate', None) or parser.instantiate_classes
    return instantiate(parser.parse_object({'data': section})).data
