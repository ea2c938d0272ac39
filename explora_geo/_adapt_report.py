"""What `adapt` measures of source and adapted backbone, on which images, and the report of it."""

import json
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from explora_geo._adapt_progress import ScoreSoFar, read_legs
from explora_geo._adapt_settings import CLASSES, Scoring, Source, read_quoted
from explora_geo._version import __version__
from explora_geo.checkpoints import load_backbone, read_weights, scale_adapter
from explora_geo.datamodules.archive import Archive, LabeledTiles
from explora_geo.datamodules.scenes import RandomWindows, grid_windows
from explora_geo.datasets import SceneDataset
from explora_geo.datasets.files import evenly_spaced
from explora_geo.devices import pick_device
from explora_geo.evaluation.comparison import ADAPTED, BESIDE, PairProtocol, interpolate, score_pair
from explora_geo.evaluation.features import mean_patches
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES, WORTH, compare_backbones, default_score
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE
from explora_geo.reports import compute_pictures, display_tiles, reconstruct, write_report
from explora_geo.trainers.guard import FeatureMonitor

#: Strengths at which the adapter is scored where there are labels.
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
#: How features are scored on labeled tiles, and on natural images, of which k-NN alone is shown.
PROTOCOL = PairProtocol()
_RETENTION = PairProtocol(draws=2, penalties=(0.1,), turns=1)
#: Images of the archive that pictures and label-free scores are made of, at most and at least.
SAMPLE, LEAST = 300, 3
#: Labeled tiles that a run is scored on while it trains; half as many without labels.
ON_THE_WAY = 150
#: Share of a run that scores on the way may take, and how many there are at most after the source's.
SHARE, MOST = 0.02, 4
# Scores on the way by their names in the log.
_SO_FAR = {
    'knn_so_far': 'k-NN accuracy on some labeled tiles',
    'label_free_so_far': SCORES[DEFAULT_SCORE].title,
}


def sample(datamodule: Any, most: int = SAMPLE) -> tuple[Tensor, list[str]]:
    """Evenly spaced images of the archive as they are scored, shape (N, C, H, W), and their names."""
    dataset, names = datamodule.train_dataset, []
    if isinstance(dataset, SceneDataset):
        # Windows at random places, always the same, about twice as many as fit side by side; a few at least.
        beside = len(grid_windows(dataset, datamodule.patch_size, whole=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            windows = list(RandomWindows(dataset, datamodule.patch_size, min(most, max(12, 2 * beside))))
        usable = [s for s in (dataset[window] for window in windows) if 'image' in s]
    else:
        picked = {i: dataset[i] for i in evenly_spaced(len(dataset), most)}
        usable = [s for s in picked.values() if 'image' in s]
        if hasattr(dataset, 'files'):
            names = [Path(str(dataset.files[i])).name for i, s in picked.items() if 'image' in s]
    if len(usable) < LEAST:
        raise ValueError(f'a report needs {LEAST} usable images, the archive gave {len(usable)}')
    batch = {'image': torch.stack([s['image'].float() for s in usable])}
    return datamodule.aug(batch)['image'].to(pick_device()), names


def score_on_the_way(
    command: Any, found: Archive, labels: str | PathLike[str] | None, seconds: float
) -> ScoreSoFar:
    """What scores a run, of so many seconds a step, while it trains, in `SHARE` of its time.

    It is k-NN on some labeled tiles, or without labels the label-free score.
    """
    datamodule = command.datamodule

    def with_labels() -> Callable[[ViT], float | None]:
        batches = list(LabeledTiles(labels or '', found, ON_THE_WAY).batches(datamodule))

        def score(vit: ViT) -> float | None:
            monitor = FeatureMonitor('knn')
            for batch in batches:
                monitor.add(mean_patches(vit, batch['image']), batch)
            return monitor.score()

        return score

    def without() -> Callable[[ViT], float | None]:
        images, _ = sample(datamodule, ON_THE_WAY // 2)
        return partial(default_score, images=images)

    # A step sees each of its images three times at least: forward, and backward; two crops of each without.
    cost, planned = ON_THE_WAY * seconds / datamodule.batch_size / 3, seconds * command.trainer.max_steps
    times = min(MOST, int(SHARE * planned / cost) - 1)
    if labels is not None:
        return ScoreSoFar('knn_so_far', 'k-NN', with_labels, times)
    return ScoreSoFar('label_free_so_far', SCORES[DEFAULT_SCORE].title.lower(), without, times)


def choose_strength(
    asked: float | None, curve: Mapping[str, Any], score: Callable[[float], float] | None
) -> tuple[float, str]:
    """Choose how much of an adapter is kept, as a share of what it adds to the source, in [0, 1].

    Args:
        asked: What the user wants, or None.
        curve: `Comparison.curve` on labeled tiles, of which validation chooses; empty without labels.
        score: Label-free score at a strength; None where it tells nothing, and all is kept.

    Returns:
        The strength, and who chose it: `request`, `labels`, `default`, or `label-free` where that score fell.
    """
    if asked is not None:
        return asked, 'request'
    if curve:
        return curve['chosen'], 'labels'
    if score is None or score(1.0) >= (source := score(0.0)):
        return 1.0, 'default'
    scores = {0.0: source} | {s: score(s) for s in STRENGTHS[:-1]}
    return max(scores, key=lambda s: scores[s]), 'label-free'


def measure(
    command: Any,
    folder: Path,
    found: Archive,
    source: Source,
    notation: str,
    scoring: Scoring,
    say: Callable[[str], None],
) -> tuple[Path, dict[str, Any]]:
    """Measure source and adapted backbone of a finished run, and write the adapter at the strength to keep.

    Writes the report, too; returns the page and the content of `report.json`.
    """
    task, datamodule, trainer = command.model, command.datamodule, command.trainer
    started, device = time.perf_counter(), pick_device()
    trained, adapter = folder / 'run' / 'adapter.safetensors', folder / 'adapter.safetensors'
    weights = read_weights(source.weights)  # once, for up to four backbones

    def adapted(file: PathLike[str] | str) -> ViT:
        shape: dict[str, Any] = {'img_size': found.image_size, 'bands': found.bands}
        return load_backbone(task.hparams['model'], weights, Path(file), **shape).to(device)

    def labeled(tiles: PathLike[str] | str) -> Callable[[], Any]:
        return partial(LabeledTiles(tiles, found).batches, datamodule)

    before, whole = source.backbone(found).to(device), adapted(trained)
    images, names = sample(datamodule)
    # A patch embedding of other bands than the source's is no difference from the source.
    scalable = source.embeds(found.bands)
    models, more, curve, comparison = {ADAPTED: whole}, {}, {}, None
    if scoring.labels is not None:
        say(f'Scoring source and adapted features on {scoring.labels}.')
        if scoring.beside is not None:
            models[BESIDE] = adapted(scoring.beside)
        protocol = replace(PROTOCOL, turns=1) if scoring.quick else PROTOCOL
        tried = {*((1.0,) if scoring.quick else STRENGTHS), scoring.strength or 0.0} if scalable else ()
        tiles = labeled(scoring.labels)
        comparison = score_pair(before, models, tiles, strengths=sorted(tried), protocol=protocol)
        curve = comparison.curve()

    def told(strength: float) -> float:
        return default_score(interpolate(before, whole, strength), images)

    # What the label-free score is worth was not measured for masked autoencoding.
    score = told if scalable and not notation.startswith('M') else None
    strength, by = choose_strength(scoring.strength, curve, score)
    scale_adapter(trained, before, adapter, strength)
    after = models[ADAPTED] = whole if strength == 1 else adapted(adapter)
    if comparison is not None:
        more['scores'] = comparison.to_dict(comparison.at(strength))
        more['scores']['labels']['source'] = str(scoring.labels)
        if curve:
            more['strength'] = more['scores'].pop('strength') | {'chosen': strength}
        if scoring.quoted is not None:
            more['quoted'] = read_quoted(Path(scoring.quoted))
    if scoring.retention is not None:
        say(f'Scoring what is still known of {scoring.retention}.')
        row = score_pair(before, after, labeled(scoring.retention), protocol=_RETENTION).rows()[0]
        row = {k: row[k] for k in ('metric', 'title', 'source', 'adapted', 'gain')}
        more['retention'] = {'source': str(scoring.retention), 'row': row}
    high = 255.0 if found.dtype == 'uint8' else None
    display = display_tiles(datamodule.mean, datamodule.std, found.bands, high)
    pictures = compute_pictures({'source': before, **models}, images, display, names)
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
            'notation': notation,
            'objective': CLASSES[notation.partition('-')[0]].lower(),
            'trainable': task.trainable_share,
            'steps': trainer.global_step,
            'batch_size': datamodule.batch_size,
            'views': trainer.global_step * datamodule.batch_size,
            'image_size': task.hparams['img_size'],
            'precision': str(trainer.precision),
            'seed': 0,
            'stopped': task.stopped,
            'strength': strength,
            'strength_by': by,
            'short': scoring.quick,
            'measured': json.loads((folder / 'request.json').read_text(encoding='utf-8'))['measured'],
        },
        **more,
        'label_free': {**compare_backbones(before, after, images), 'tiles': len(images), 'worth': WORTH},
        'curves': _curves(sorted((folder / 'run').glob('metrics*.csv'))),
        'skipped': [f'{path}: {reason}' for path, reason in task.skipped.items()],
        'next': _next(adapter, source, scoring),
        'cost': _cost(read_legs(folder / 'run' / 'legs.json'), adapter, started),
    }
    page = write_report(folder, report, pictures)
    return page, json.loads((folder / 'report.json').read_text(encoding='utf-8'))


def _curves(logs: list[Path]) -> list[dict[str, Any]]:
    """Losses over training, of a run that was resumed in one piece."""
    parts = [pd.read_csv(log) for log in logs if log.stat().st_size]
    table = pd.concat(parts).sort_values('step', kind='stable') if parts else pd.DataFrame()
    titles = {'train_loss': 'Training loss', 'train_cosine': "Cosine to the source's mean of all turns"}
    found = []
    for column, title in {**titles, **_SO_FAR}.items():
        if column in table and not (rows := table.dropna(subset=[column])).empty:
            rows = rows.drop_duplicates('step', keep='last')
            y = rows[column].tolist()
            start = {'start': y[0]} if column in _SO_FAR else {}
            found.append({'title': title, 'x': rows['step'].tolist(), 'y': y, 'x_label': 'step', **start})
    return found


def _cost(legs: list[dict[str, Any]], adapter: Path, started: float) -> dict[str, Any]:
    trained, images = (sum(leg[k] for leg in legs) for k in ('seconds', 'images'))
    energies, threads = [leg['watt_hours'] for leg in legs], torch.get_num_threads()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    cuda, scoring = torch.cuda.is_available(), time.perf_counter() - started
    return {
        'seconds': {**({'training': trained} if trained else {}), 'scoring': scoring},
        'images_per_second': images / trained if trained else None,
        'memory': torch.cuda.max_memory_allocated() if cuda else peak,
        'energy': sum(energies) if energies and None not in energies else None,
        'device': torch.cuda.get_device_name() if cuda else f'CPU, {threads} thread{"s"[: threads != 1]}',
        'adapter_bytes': adapter.stat().st_size,
    }


def _next(made: Path, source: Source, scoring: Scoring) -> list[str]:
    """Commands that go on from here."""
    given = (scoring.beside or made, made.with_name('merged.safetensors'), source.weights)
    adapter, merged, weights = (shlex.quote(str(text)) for text in given)
    tiles = shlex.quote(str(scoring.labels or 'LABELED_TILES'))
    longer = f'explora-geo adapt YOUR_TILES --weights {weights} --minutes 30 --out runs/mine'
    return [
        *([longer] if scoring.quick else []),
        f'explora-geo probe {tiles} --weights {weights} --adapter {adapter}',
        f'explora-geo map SCENE.tif --weights {weights} --adapter {adapter} --out map.tif',
        f'explora-geo adapter merge {adapter} --base {weights} --out {merged}',
    ]
