"""What `adapt` measures of source and adapted backbone, and the report of it."""

import json
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from explora_geo._adapt_progress import read_legs
from explora_geo._adapt_scores import LABEL_FREE, LABELED, LEAST, sample, score
from explora_geo._adapt_settings import ANCHOR, Source
from explora_geo._version import __version__
from explora_geo.checkpoints import load_backbone, read_weights, scale_adapter
from explora_geo.datamodules.archive import Archive
from explora_geo.evaluation.comparison import ADAPTED, BESIDE, PairProtocol, interpolate
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES, WORTH, compare_backbones, default_score
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE
from explora_geo.reports import compute_pictures, display_tiles, reconstruct, write_report

#: Strengths at which the adapter is scored where there are labels.
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
#: How features are scored on labeled tiles, and on natural images, of which k-NN alone is shown.
PROTOCOL = PairProtocol()
_RETENTION = PairProtocol(draws=2, penalties=(0.1,), turns=1)


@dataclass(frozen=True)
class Scoring:
    """What source and adapted backbone are measured by; it may change between calls on the same run.

    Attributes:
        labels: Folder of labeled tiles, or None.
        retention: Folder of labeled natural images, or None.
        beside: Adapter file of the same weights that is scored, too, or None.
        quick: A short run that only shows how it goes: features are scored as they are, without orientations
            and strengths between source and adapter.
        strength: Share of the adapter that is kept, in [0, 1]; chosen if None.
        quoted: JSON of scores that were measured elsewhere, whose rivals the page quotes, or None.
    """

    labels: str | PathLike[str] | None = None
    retention: str | PathLike[str] | None = None
    beside: str | PathLike[str] | None = None
    quick: bool = False
    strength: float | None = None
    quoted: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked before anything is written."""
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise ValueError(
                'strength must be auto, or from 0 (the source) to 1 (all of the adapter), got '
                f'{self.strength:g}'
            )
        for name in ('labels', 'retention'):
            given = getattr(self, name)
            if given is not None and not Path(given).is_dir():
                raise FileNotFoundError(f'no folder {given}: {name} is a folder with a folder for each class')
        if self.quoted is not None:
            read_quoted(Path(self.quoted))
        if self.beside is not None and self.labels is None:
            raise ValueError('beside is an adapter that labels score: give labels, too')


def read_quoted(file: Path) -> dict[str, Any]:
    """Scores that were measured elsewhere, as reports quote them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no scores.
    """
    if not file.is_file():
        raise FileNotFoundError(f'no file {file}: quoted is a JSON file of scores')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        rows = [row for row in content['rows'] if row['metric']]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} holds no scores: quoted needs rows, as report.json has them') from error
    return {'source': str(file), 'command': content.get('command'), 'rows': rows}


@dataclass(frozen=True)
class Strength:
    """How much of an adapter is kept.

    Attributes:
        value: Share of what the adapter adds to the source, in [0, 1].
        by: Who chose it: `request`, `labels`, `label-free` where that score fell, or `default`.
    """

    value: float
    by: Literal['request', 'labels', 'label-free', 'default']


def choose_strength(
    asked: float | None, curve: Mapping[str, Any], before: ViT, whole: ViT, images: Tensor
) -> Strength:
    """Choose how much of an adapter is kept.

    Args:
        asked: What the user wants, or None.
        curve: `Comparison.curve` on labeled tiles, of which validation chooses; empty without labels.
        before: Source.
        whole: Adapted backbone at strength 1.
        images: Normalized sample of the archive, by which the label-free score falls or not, shape
            (N, C, H, W); with too few of them all is kept.
    """
    if asked is not None:
        return Strength(asked, 'request')
    if curve:
        return Strength(curve['chosen'], 'labels')
    if len(images) < LEAST:
        return Strength(1.0, 'default')
    scores = {0.0: default_score(before, images)}
    if default_score(whole, images) >= scores[0.0]:
        return Strength(1.0, 'default')
    scores |= {s: default_score(interpolate(before, whole, s), images) for s in STRENGTHS[:-1]}
    return Strength(max(scores, key=lambda s: scores[s]), 'label-free')


def measure(
    command: Any,
    folder: Path,
    found: Archive,
    source: Source,
    notation: str,
    scoring: Scoring,
    say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:
    """Measure source and adapted backbone, write the adapter at the strength that is kept, and the report.

    Args:
        command: The finished run, with `trainer`, `model` and `datamodule`.
        folder: Its folder.
        found: The archive.
        source: The weights.
        notation: What trained, by which objective.
        scoring: What to measure by.
        say: Told what is done.

    Returns:
        The page, and the content of `report.json`.
    """
    task, datamodule = command.model, command.datamodule
    started = time.perf_counter()
    trained, adapter = folder / 'run' / 'adapter.safetensors', folder / 'adapter.safetensors'
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    shape: dict[str, Any] = {'img_size': found.image_size, 'bands': found.bands}
    weights = read_weights(source.weights)  # once, for up to four backbones
    before = source.backbone(found).to(device)
    whole = load_backbone(task.hparams['model'], weights, trained, **shape).to(device)
    images, names = sample(datamodule, device)
    # A patch embedding of other bands than the source's is no difference from the source.
    scalable = source.embeds(found.bands)
    comparison, beside = None, None
    if scoring.labels is not None:
        say(f'Scoring source and adapted features on {scoring.labels}.')
        models = {ADAPTED: whole}
        if scoring.beside is not None:
            beside = load_backbone(task.hparams['model'], weights, Path(scoring.beside), **shape).to(device)
            models[BESIDE] = beside
        protocol = replace(PROTOCOL, turns=1) if scoring.quick else PROTOCOL
        strengths = {*((1.0,) if scoring.quick else STRENGTHS), scoring.strength or 0.0}
        tried = sorted(strengths) if scalable else ()
        comparison = score(before, models, scoring.labels, datamodule, found, protocol, tried)
    curve = comparison.curve() if comparison is not None else {}
    strength = Strength(1.0, 'default')
    if scalable:
        # What the label-free score is worth was not measured for masked autoencoding.
        told = images[:0] if notation.startswith('M') else images
        strength = choose_strength(scoring.strength, curve, before, whole, told)
    scale_adapter(trained, before, adapter, strength.value)
    after = whole
    if strength.value < 1:
        after = load_backbone(task.hparams['model'], weights, adapter, **shape).to(device)
    high = 255.0 if found.dtype == 'uint8' else None
    display = display_tiles(datamodule.mean, datamodule.std, found.bands, high)
    pictures = compute_pictures(before, after, images, display, beside=beside, names=names)
    if isinstance(task.model, MAE):
        pictures['reconstructions'] = reconstruct(task.model.cpu(), images[:8].cpu(), display)
    report: dict[str, Any] = {
        'created': time.strftime('%Y-%m-%d %H:%M'),
        'version': __version__,
        'archive': {k: v for k, v in found.facts().items() if k != 'settings'},
        'model': {
            'weights': source.weights,
            'backbone': source.model,
            'parameters': sum(p.numel() for p in before.parameters()),
            'patch_size': source.patch_size,
        },
        'adaptation': {
            **_adaptation(command, notation),
            'strength': strength.value,
            'strength_by': strength.by,
            'short': scoring.quick,
            'measured': json.loads((folder / 'request.json').read_text(encoding='utf-8'))['measured'],
        },
        'label_free': {
            **compare_backbones(before, after, images),
            'tiles': len(images),
            'chosen': DEFAULT_SCORE,
            'worth': WORTH,
        },
        'curves': _curves(sorted((folder / 'run').glob('metrics*.csv'))),
        'skipped': [f'{path}: {reason}' for path, reason in task.skipped.items()],
        'cost': {},
        'next': _next(folder, source, scoring),
    }
    if comparison is not None:
        report['scores'] = comparison.at(strength.value).to_dict()
        report['scores']['labels']['source'] = str(scoring.labels)
        del report['scores']['strength']
        if scoring.quoted is not None:
            report['quoted'] = read_quoted(Path(scoring.quoted))
        if curve:
            report['strength'] = {**curve, 'chosen': strength.value}
    if scoring.retention is not None:
        say(f'Scoring what is still known of {scoring.retention}.')
        kept = score(before, {ADAPTED: after}, scoring.retention, datamodule, found, _RETENTION)
        row = {
            k: v for k, v in kept.rows()[0].items() if k in ('metric', 'title', 'source', 'adapted', 'gain')
        }
        report['retention'] = {'source': str(scoring.retention), 'row': row}
    legs, seconds = read_legs(folder / 'run' / 'legs.json'), time.perf_counter() - started
    report['cost'] = _cost(legs, adapter, device, seconds)
    page = write_report(folder, report, pictures)
    return page, json.loads((folder / 'report.json').read_text(encoding='utf-8'))


def _adaptation(command: Any, notation: str) -> dict[str, Any]:
    task, trainer = command.model, command.trainer
    data = command.datamodule
    letter = notation.partition('-')[0]
    return {
        'notation': notation,
        'objective': {'D': 'dinov2', 'M': 'mae', ANCHOR: ANCHOR}[letter],
        'trainable': task.trainable_share,
        'steps': trainer.global_step,
        'batch_size': data.batch_size,
        'views': trainer.global_step * data.batch_size,
        'image_size': task.hparams['img_size'],
        'precision': str(trainer.precision),
        'seed': 0,
        'stopped': task.stopped,
    }


def _curves(logs: list[Path]) -> list[dict[str, Any]]:
    """Losses over training, of a run that was resumed in one piece."""
    parts = [pd.read_csv(log) for log in logs if log.stat().st_size]
    table = pd.concat(parts) if parts else pd.DataFrame()
    if 'step' in table:
        table = table.sort_values('step', kind='stable')
    titles = {'train_loss': 'Training loss', 'train_cosine': "Cosine to the source's mean of all turns"}
    titles |= {LABELED: 'k-NN accuracy on some labeled tiles', LABEL_FREE: SCORES[DEFAULT_SCORE].title}
    found = []
    for column, title in titles.items():
        if (
            column in table
            and (rows := table.dropna(subset=[column]).drop_duplicates('step', keep='last')).size
        ):
            curve = {
                'title': title,
                'x': rows['step'].tolist(),
                'y': rows[column].tolist(),
                'x_label': 'step',
            }
            start = {'start': curve['y'][0]} if column in (LABELED, LABEL_FREE) else {}
            found.append({**curve, **start})
    return found


def _cost(legs: list[dict[str, Any]], adapter: Path, device: str, scoring: float) -> dict[str, Any]:
    trained, images = (sum(leg[k] for leg in legs) for k in ('seconds', 'images'))
    energies = [leg['watt_hours'] for leg in legs]
    metered = energies and None not in energies
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        'seconds': {**({'training': trained} if trained else {}), 'scoring': scoring},
        'images_per_second': images / trained if trained else None,
        'memory': torch.cuda.max_memory_allocated()
        if device == 'cuda'
        else peak * (1 if sys.platform == 'darwin' else 1024),
        'energy': sum(energies) if metered else None,
        'device': torch.cuda.get_device_name()
        if device == 'cuda'
        else f'CPU, {(n := torch.get_num_threads())} thread{"s"[: n != 1]}',
        'adapter_bytes': adapter.stat().st_size,
    }


def _next(folder: Path, source: Source, scoring: Scoring) -> list[str]:
    adapter, merged = (shlex.quote(str(folder / f'{name}.safetensors')) for name in ('adapter', 'merged'))
    weights = shlex.quote(source.weights)
    tiles = shlex.quote(str(scoring.labels)) if scoring.labels is not None else 'LABELED_TILES'
    if scoring.beside is not None:
        adapter = shlex.quote(str(scoring.beside))
    longer = f'explora-geo adapt YOUR_TILES --weights {weights} --minutes 30 --out runs/mine'
    return [
        *([longer] if scoring.quick else []),
        f'explora-geo probe {tiles} --weights {weights} --adapter {adapter}',
        f'explora-geo map SCENE.tif --weights {weights} --adapter {adapter} --out map.tif',
        f'explora-geo adapter merge {adapter} --base {weights} --out {merged}',
    ]
