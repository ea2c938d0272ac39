"""Functional Map of the World's classes and file lists."""

import hashlib
import re
from pathlib import Path

import pandas as pd

CLASSES = tuple(
    """
    airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn
    border_checkpoint burial_site car_dealership construction_site crop_field dam debris_or_rubble
    educational_institution electric_substation factory_or_powerplant fire_station flooded_road fountain
    gas_station golf_course ground_transportation_station helipad hospital impoverished_settlement
    interchange lake_or_pond lighthouse military_facility multi-unit_residential nuclear_powerplant
    office_building oil_or_gas_facility park parking_lot_or_garage place_of_worship police_station port
    prison race_track railway_bridge recreational_facility road_bridge runway shipyard shopping_mall
    single-unit_residential smokestack solar_farm space_facility stadium storage_tank surface_mine
    swimming_pool toll_booth tower tunnel_opening waste_disposal water_treatment_facility wind_farm zoo
    """.split()
)

# airport_hangar_12_3_rgb.jpg: category, location, image and the kind of file.
_NAME = re.compile(r'(?P<category>.+)_(?P<location>-?\d+)_(?P<image>\d+)(?P<kind>\D.*)?')


def read_list(path: Path, checksum: str | None) -> pd.DataFrame:
    """Read a CSV list.

    Args:
        path: List.
        checksum: SHA-256 it should have, or None.

    Returns:
        Its rows.

    Raises:
        ValueError: If it is another list, no CSV, or empty.
    """
    content = path.read_bytes()
    if checksum is not None and hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f'The list {path} has another SHA-256 than {checksum}; get the right list.')
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f'The list {path} is no CSV file ({error}).') from error
    if table.empty:
        raise ValueError(f'The list {path} has no rows; get the complete list.')
    return table


def sentinel_rows(table: pd.DataFrame, root: Path, split: str, where: Path) -> pd.DataFrame:
    """Rows of fMoW-Sentinel's ``train.csv`` and ``val.csv``.

    Args:
        table: The list, with ``category, location_id, image_id, timestamp`` and maybe ``polygon``. A
            column ``image_path`` is not used: the published one does not name the files.
        root: Folder that holds ``fmow-sentinel``.
        split: Name of the split in the paths.
        where: The list, for error messages.

    Returns:
        ``path, label, location_id, image_id, timestamp, series`` and maybe ``polygon``.

    Raises:
        ValueError: If a column is missing or a category unknown.
    """
    needed = ['category', 'location_id', 'image_id', 'timestamp']
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(f'The list {where} lacks the columns {missing}; it has {list(table.columns)}.')
    place = table['category'].astype(str) + '_' + table['location_id'].astype(str)
    files = place + '_' + table['image_id'].astype(str) + '.tif'
    folder = root / 'fmow-sentinel' / split
    rows = table[needed[1:]].copy()
    rows['path'] = [
        folder / category / p / file
        for category, p, file in zip(table['category'], place, files, strict=True)
    ]
    rows['label'] = _labels(table['category'], where)
    rows['series'] = place
    if 'polygon' in table:
        rows['polygon'] = table['polygon']
    return rows.sort_values(['label', 'location_id', 'timestamp'], kind='stable', ignore_index=True)


def rgb_rows(table: pd.DataFrame, root: Path, where: Path) -> pd.DataFrame:
    """Rows of ``train_62classes.csv`` and its like: label, path, timestamp, by place in the row.

    Args:
        table: The list; labels are numbers or names of classes, and there may be no timestamps.
        root: Folder that relative paths start from.
        where: The list, for error messages.

    Returns:
        ``path, label, location_id, image_id, timestamp, series``; images of one place and kind of file
        are one series.

    Raises:
        ValueError: If there are too few columns or a class is unknown.
    """
    if table.shape[1] < 2:
        raise ValueError(
            f'The list {where} must have label, path and timestamp, it has {list(table.columns)}.'
        )
    paths = [root / str(path) for path in table.iloc[:, 1]]
    names = [_NAME.fullmatch(path.stem) for path in paths]
    rows = pd.DataFrame(
        {
            'path': paths,
            'label': _labels(table.iloc[:, 0], where),
            'location_id': [int(m['location']) if m else -1 for m in names],
            'image_id': [int(m['image']) if m else -1 for m in names],
            'timestamp': table.iloc[:, 2].astype(str) if table.shape[1] > 2 else '',
        }
    )
    # The folder is part of a series' name: a place in two splits is two series.
    rows['series'] = [
        f'{path.parent}/{m["category"]}_{m["location"]}{m["kind"] or ""}' if m else str(path)
        for path, m in zip(paths, names, strict=True)
    ]
    return rows


def _labels(values: pd.Series, where: Path) -> list[int]:
    """Numbers of classes out of their numbers or names."""
    numbers = {name: i for i, name in enumerate(CLASSES)} | {str(i): i for i in range(len(CLASSES))}
    unknown = sorted({str(v) for v in values} - set(numbers))
    if unknown:
        raise ValueError(
            f'The list {where} has classes that fMoW has not, first {unknown[:3]}; classes are numbers from '
            f'0 to {len(CLASSES) - 1} or names from {CLASSES[0]} to {CLASSES[-1]}.'
        )
    return [numbers[str(value)] for value in values]
