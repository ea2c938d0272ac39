"""Adapt a backbone to an archive in one call, and report whether that helped."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from explora_geo._adapt_progress import train
from explora_geo._adapt_report import measure, watch
from explora_geo._adapt_settings import (
    Length,
    Options,
    Run,
    check_folder,
    choose_adaptation,
    find_source,
    merge_settings,
)
from explora_geo._adapt_speed import prepare, settle
from explora_geo._atomic import FULL, write_text
from explora_geo._compat import WeightsEnum
from explora_geo.configured import read_yaml
from explora_geo.datamodules.archive import look
from explora_geo.reports.page import duration

#: Default source.
DEFAULT_WEIGHTS = 'timm/vit_small_patch14_dinov2.lvd142m'


class Adapted(NamedTuple):
    """Files and results of an adaptation."""

    folder: Path  # run folder
    adapter: Path  # adapter file
    page: Path  # HTML report
    report: dict[str, Any]  # content of `report.json`; `report['verdict']` says whether it helped


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages about devices, seeds and folders; `adapt` reports what matters."""
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
    strength: float | str = 'auto',
    **options: Any,
) -> Adapted:
    """Adapt a backbone to an archive of unlabeled images, and score it before and after.

    Repeat the same call on the same folder to resume an interrupted run.

    Args:
        archive: Folder of tiles, pack, scenes or list of files; see `explora_geo.datamodules.archive.look`.
        out: Run folder, which gets `adapter.safetensors`, `config.yaml`, `report.json` and `report.html`.
        weights: Source: a `WeightsEnum` or its name, a file, `timm/<name>` or `hf:<owner>/<name>`.
        adaptation: `D-ExPLoRA-[L]-r32` or `M-ExPLoRA-[L]-r32` (the paper's), `anchor-[L]-r32` (ours), or
            `align-[L]-r32` (patch kernel alignment; cheap, for supervised sources). If None, M for weights
            of a masked autoencoder, else the anchor, which does a strong source no harm.
        length: Such as `30 minutes`, `600 steps` or `2 epochs`; minutes are converted to steps once.
        bands: Bands to use, in order; see `look`.
        labels: Folder of labeled tiles to score source and adapted features on; never used for training.
        retention: Folder of labeled natural images, to measure what the model still knows about them.
        config: YAML file of `explora-geo fit` whose entries override those chosen here.
        strength: Share of the learned change that the adapter file adds to the source, from 0 (none) to 1.
            `auto` takes the best strength on validation tiles of `labels`, which may be 0; without labels
            it is 1, or less if the label-free score falls.
        **options: `beside`, `quick`, `quoted` and `force` as for `explora-geo adapt`; `say`, a function
            that receives progress messages.

    Returns:
        The run's files and results.

    Raises:
        FileNotFoundError: If archive, labels or weights do not exist.
        ValueError: If the settings do not fit, or the folder holds another run.
    """
    given = Options(labels, retention, strength, **options)
    folder, wanted, source = Path(out), Length.parse(length), find_source(weights)
    notation = choose_adaptation(source, adaptation, given.force)
    request: dict[str, Any] = {
        'archive': [str(a) for a in archive] if isinstance(archive, list | tuple) else str(archive),
        'weights': source.weights,
        'adaptation': notation,
        'length': str(wanted),
        'bands': bands if bands is None or isinstance(bands, str) else ','.join(bands),
        'config': None if config is None else read_yaml(Path(config)),
    }
    check_folder(folder, request)
    job = Run(folder, look(archive, bands, source.patch_size), source, notation, given)
    job.check()
    given.say(job.found.sentences())
    try:
        file = folder / 'config.yaml'
        if not file.is_file():
            stated = request['config'] or {}
            settings, trials = settle(merge_settings(job.settings(), stated), stated, job.found, wanted)
            request['measured'] = [t.to_dict() for t in trials]
            write_text(folder / 'request.json', json.dumps(request, indent=1))
            write_text(file, yaml.safe_dump(settings, sort_keys=False))
        settings = read_yaml(file)
        measured = json.loads((folder / 'request.json').read_text(encoding='utf-8'))['measured']
        given.say(_plan(settings, job, measured[0]['seconds']))
        command = prepare(settings)
        train(command, watch(command, job, measured[0]['seconds']))
        page, report = measure(command, job, measured)
    except (KeyboardInterrupt, SystemExit):
        last = job.training / 'last.ckpt'
        goal = f'resume from {last}' if last.is_file() else 'start over: nothing was saved yet'
        given.say(f'Stopped. Repeat the command to {goal}.')
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        # Errors from Lightning's logger do not name the file.
        bare = error.strerror == os.strerror(error.errno)
        text = f'no space left to write to {folder}: make room and rerun' if bare else error.strerror
        raise OSError(error.errno, f'{text} to resume') from error
    return Adapted(folder, job.adapter, page, report)


def _plan(settings: dict[str, Any], job: Run, seconds: float) -> str:
    """Describe the run to come in two lines."""
    trainer, batch = settings['trainer'], settings['data']['init_args']['batch_size']
    size, steps = settings['model']['init_args']['img_size'], trainer['max_steps']
    return (
        f'Adapting {job.source.weights} with {job.notation}: {steps:,} steps of {batch} images of {size} px '
        f'in {trainer["precision"]}, about {duration(seconds * steps)}.\n'
        f'Output: {trainer["default_root_dir"]}; its config.yaml also runs with explora-geo fit --config.'
    )
