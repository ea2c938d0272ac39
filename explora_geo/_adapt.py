"""The main job as one verb: adapt a backbone to an archive, and say whether that helped."""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from explora_geo._adapt_progress import train
from explora_geo._adapt_report import LEAST, measure, score_on_the_way
from explora_geo._adapt_settings import (
    Length,
    Scoring,
    Source,
    check_folder,
    choose_adaptation,
    find_source,
    merge_settings,
    run_settings,
)
from explora_geo._adapt_speed import prepare, settle
from explora_geo._atomic import FULL, atomic_path
from explora_geo._compat import WeightsEnum
from explora_geo.checkpoints import load_backbone
from explora_geo.configured import read_yaml
from explora_geo.datamodules.archive import LabeledTiles, look
from explora_geo.reports.page import duration

#: Adapted where nothing else is asked for.
DEFAULT_WEIGHTS = 'timm/vit_small_patch14_dinov2.lvd142m'


class Adapted(NamedTuple):
    """What an adaptation left behind."""

    folder: Path  # of the run
    adapter: Path  # the adapter file
    page: Path  # the report, to open in a browser
    report: dict[str, Any]  # content of `report.json`; `report['verdict']` says whether it helped


def adapt(
    archive: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str] = 'runs/adapt',
    weights: WeightsEnum | str | PathLike[str] = DEFAULT_WEIGHTS,
    adaptation: str | None = None,
    length: str = '30 minutes',
    bands: str | Sequence[str] | None = None,
    labels: str | PathLike[str] | None = None,
    retention: str | PathLike[str] | None = None,
    config: str | PathLike[str] | None = None,
    strength: float | Literal['auto'] = 'auto',
) -> Adapted:
    """Adapt a backbone to an archive of unlabeled images, and measure it before and after.

    The same call on the same folder goes on where it was stopped.

    Args:
        archive: Folder of tiles, pack, scenes or list of files; see `explora_geo.datamodules.archive.look`.
        out: Folder of the run: `adapter.safetensors`, `config.yaml`, `report.json`, `report.html`.
        weights: What is adapted: a `WeightsEnum` or its name, a file, `timm/<name>` or `hf:<owner>/<name>`.
        adaptation: `D-ExPLoRA-[L]-r32` or `M-ExPLoRA-[L]-r32`, the paper's; `anchor-[L]-r32`, ours;
            `align-[L]-r32`, patch kernel alignment, cheap and for sources made with labels. If None,
            M for weights of a masked autoencoder, else the anchor, which does a strong source no harm.
        length: Such as `30 minutes`, `600 steps` or `2 epochs`; minutes become steps once.
        bands: Bands to use, in order; see `look`.
        labels: Folder of labeled tiles, by which source and adapted features are scored; never trained on.
        retention: Folder of labeled natural images: what the model still knows of them.
        config: YAML file of `explora-geo fit` whose entries replace those chosen here.
        strength: Share of what was learned that the adapter file adds to the source, from 0 (nothing) to 1.
            `auto` takes the one that validation tiles of `labels` prefer, which may be 0; without labels 1,
            or less where the label-free score falls.

    Returns:
        The run.

    Raises:
        FileNotFoundError: If archive, labels or weights do not exist.
        ValueError: If something does not fit, or the folder holds another run.
    """
    scoring = Scoring(labels, retention, strength=None if strength == 'auto' else strength)
    return run(archive, out, weights, adaptation, length, bands, config, scoring)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out what Lightning says of devices, seeds and folders; `adapt` says itself what matters."""
    loggers = [logging.getLogger(f'lightning.{name}') for name in ('pytorch', 'fabric')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module=r'lightning\.')
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@_quiet_lightning()
def run(
    archive: Any,
    out: Any,
    weights: Any,
    adaptation: str | None,
    length: str,
    bands: Any,
    config: Any,
    scoring: Scoring,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Adapted:
    """`adapt`, telling what it does; `force` adapts against advice."""
    folder = Path(out)
    wanted = Length.parse(length)
    source = find_source(weights)
    notation = choose_adaptation(source, adaptation, force)
    request: dict[str, Any] = {
        'archive': [str(a) for a in archive] if isinstance(archive, list | tuple) else str(archive),
        'weights': source.weights,
        'adaptation': notation,
        'length': str(wanted),
        'bands': bands if bands is None or isinstance(bands, str) else ','.join(bands),
        'config': None if config is None else read_yaml(Path(config)),
    }
    check_folder(folder, request)
    found = look(archive, bands, source.patch_size)
    # Says now, and not after training, what does not fit.
    if found.kind != 'scenes' and found.images < LEAST:  # scenes are cut anew as often as it takes
        raise ValueError(
            f'{found.source} holds {found.images} image{"s"[: found.images != 1]}: give {LEAST} or more'
        )
    if scoring.strength not in (None, 1) and not source.embeds(found.bands):
        raise ValueError(
            f'strength must be 1 for the bands {", ".join(found.bands)}: {source.weights} read '
            f'{", ".join(source.bands)}, and no part of a new patch embedding can be taken'
        )
    for given in (scoring.labels, scoring.retention):
        if given is not None:
            LabeledTiles(given, found)
    if scoring.beside is not None:
        load_backbone(source.model, source.weights, Path(scoring.beside))
    say(found.sentences())
    try:
        file = folder / 'config.yaml'
        if not file.is_file():
            stated = request['config'] or {}
            settings = merge_settings(run_settings(found, source, notation, folder), stated)
            settings, trials = settle(settings, stated, found, wanted)
            _write(
                folder / 'request.json',
                json.dumps({**request, 'measured': [t.to_dict() for t in trials]}, indent=1),
            )
            _write(file, yaml.safe_dump(settings, sort_keys=False))
        settings = read_yaml(file)
        measured = json.loads((folder / 'request.json').read_text(encoding='utf-8'))['measured']
        say(_plan(settings, source, notation, measured[0]['seconds']))
        command = prepare(settings)
        score = score_on_the_way(command, found, scoring.labels, measured[0]['seconds'])
        train(command, folder / 'run', score)
        page, report = measure(command, folder, found, source, notation, scoring, say)
    except (KeyboardInterrupt, SystemExit):
        last = folder / 'run' / 'last.ckpt'
        saved = f'goes on from {last}' if last.is_file() else 'starts anew, for nothing was saved yet'
        say(f'Stopped. The same command {saved}.')
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        # Lightning's logger names no file.
        bare = error.strerror == os.strerror(error.errno)
        text = f'no space left to write to {folder}: make room and run again' if bare else error.strerror
        raise OSError(error.errno, f'{text}; the same command goes on') from error
    return Adapted(folder, folder / 'adapter.safetensors', page, report)


def _write(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding='utf-8')


def _plan(settings: dict[str, Any], source: Source, notation: str, seconds: float) -> str:
    """What is about to be done, in two lines."""
    trainer, batch = settings['trainer'], settings['data']['init_args']['batch_size']
    size, steps = settings['model']['init_args']['img_size'], trainer['max_steps']
    return (
        f'{source.weights} is adapted as {notation}: {steps:,} steps of {batch} images of {size} px in '
        f'{trainer["precision"]}, about {duration(seconds * steps)}.\n'
        f'Files go to {trainer["default_root_dir"]}; explora-geo fit --config reads its config.yaml.'
    )
