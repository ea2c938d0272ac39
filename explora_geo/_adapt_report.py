"""Score the source and the adapted backbone of an `adapt` run, and write its report."""

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

from explora_geo._adapt_progress import Watch, read_legs
from explora_geo._adapt_settings import LEAST, Run, read_quoted
from explora_geo._version import __version__
from explora_geo.checkpoints import load_backbone, read_weights, scale_adapter
from explora_geo.datamodules.archive import LabeledTiles
from explora_geo.datamodules.scenes import RandomWindows, grid_windows
from explora_geo.datasets import SceneDataset
from explora_geo.datasets.files import evenly_spaced
from explora_geo.devices import pick_device
from explora_geo.evaluation.comparison import ADAPTED, BESIDE, PairProtocol, interpolate, score_pair
from explora_geo.evaluation.features import mean_patches
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES, WORTH, compare_backbones, default_score
from explora_geo.evaluation.probes import cross_validated_accuracy
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE
from explora_geo.reports import compute_pictures, display_tiles, reconstruct, write_report

#: Strengths at which the adapter is scored if there are labels.
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
#: Scoring protocols for labeled tiles and for natural images; of the latter only k-NN is shown.
PROTOCOL = PairProtocol()
_RETENTION = PairProtocol(draws=2, penalties=(0.1,), turns=1, whitening=())
#: Largest number of archive images used for pictures and label-free scores.
SAMPLE = 300
#: Labeled tiles for scores during training; half as many unlabeled tiles without labels.
ON_THE_WAY = 150
#: Largest share of a run spent on scores during training, and largest number of them after the source's.
SHARE, MOST = 0.02, 4
# Titles of scores during training, by log name.
_SO_FAR = {
    'knn_so_far': 'k-NN accuracy on a subset of the labeled tiles',
    'label_free_so_far': SCORES[DEFAULT_SCORE].title,
}


def sample(datamodule: Any, most: int = SAMPLE) -> tuple[Tensor, list[str]]:
    """Return evenly spaced, normalized images of the archive, shape (N, C, H, W), and their names."""
    dataset, names = datamodule.train_dataset, []
    if isinstance(dataset, SceneDataset):
        # Random windows with a fixed seed: about twice as many as a grid would hold, at least 12.
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
        raise ValueError(f'a report needs at least {LEAST} usable images, the archive has {len(usable)}')
    batch = {'image': torch.stack([s['image'].float() for s in usable])}
    return datamodule.aug(batch)['image'].to(pick_device()), names


def watch(command: Any, run: Run, seconds: float) -> Watch:
    """Make the `Watch` of a run from its seconds per step; its scores take at most `SHARE` of the time.

    The score is k-NN on some labeled tiles, or the label-free score without labels.
    """
    datamodule, labels = command.datamodule, run.options.labels

    def by_labels() -> Callable[[ViT], float | None]:
        batches = list(LabeledTiles(labels or '', run.found, ON_THE_WAY).batches(datamodule))
        classes = torch.cat([batch['label'] for batch in batches]).cpu().numpy()

        def score(vit: ViT) -> float | None:
            features = torch.cat([mean_patches(vit, batch['image']) for batch in batches])
            return cross_validated_accuracy(features.numpy(), classes)

        return score

    def label_free() -> Callable[[ViT], float | None]:
        return partial(default_score, images=sample(datamodule, ON_THE_WAY // 2)[0])

    # A step costs three or more forward passes per image; a score one per tile, or two without labels.
    cost, planned = ON_THE_WAY * seconds / datamodule.batch_size / 3, seconds * command.trainer.max_steps
    times = min(MOST, int(SHARE * planned / cost) - 1)
    if labels is not None:
        return Watch(run.training, 'knn_so_far', 'k-NN', by_labels, times)
    return Watch(run.training, 'label_free_so_far', SCORES[DEFAULT_SCORE].title.lower(), label_free, times)


def choose_strength(
    asked: float | None, curve: Mapping[str, Any], score: Callable[[float], float] | None
) -> tuple[float, str]:
    """Return the strength to keep and its origin: `request`, `labels`, `default` or `label-free`.

    Use the requested strength, else the one that `Comparison.curve` chooses on validation, else 1, unless
    the label-free `score`, if given, falls at 1: then the strength that it rates best.
    """
    if asked is not None:
        return asked, 'request'
    if curve:
        return curve['chosen'], 'labels'
    if score is None or score(1.0) >= (source := score(0.0)):
        return 1.0, 'default'
    scores = {0.0: source} | {s: score(s) for s in STRENGTHS[:-1]}
    return max(scores, key=lambda s: scores[s]), 'label-free'


def measure(command: Any, run: Run, measured: list[dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Score source and adapted backbone of a trained run; return the page and the content of `report.json`.

    Write both, and the adapter at the chosen strength. `measured` lists the trials that settled the batch.
    """
    task, datamodule, trainer = command.model, command.datamodule, command.trainer
    found, source, wanted = run.found, run.source, run.options
    started, device, trained = time.perf_counter(), pick_device(), run.training / 'adapter.safetensors'
    weights = read_weights(source.weights)  # read once for up to four backbones

    def adapted(file: PathLike[str] | str) -> ViT:
        shape: dict[str, Any] = {'img_size': found.image_size, 'bands': found.bands}
        return load_backbone(task.hparams['model'], weights, Path(file), **shape).to(device)

    def labeled(tiles: PathLike[str] | str) -> Callable[[], Any]:
        return partial(LabeledTiles(tiles, found).batches, datamodule)

    before, whole = source.backbone(found).to(device), adapted(trained)
    images, names = sample(datamodule)
    models, more, curve, comparison = {ADAPTED: whole}, {}, {}, None
    if wanted.labels is not None:
        wanted.say(f'Scoring source and adapted features on {wanted.labels}.')
        if wanted.beside is not None:
            models[BESIDE] = adapted(wanted.beside)
        protocol = replace(PROTOCOL, turns=1) if wanted.quick else PROTOCOL
        tried = {*((1.0,) if wanted.quick else STRENGTHS), wanted.share or 0.0} if run.scalable else ()
        tiles = labeled(wanted.labels)
        comparison = score_pair(before, models, tiles, strengths=sorted(tried), protocol=protocol)
        curve = comparison.curve()

    def told(strength: float) -> float:
        return default_score(interpolate(before, whole, strength), images)

    # The label-free score was not validated for masked autoencoding.
    score = told if run.scalable and run.kind != 'MAE' else None
    strength, by = choose_strength(wanted.share, curve, score)
    scale_adapter(trained, before, run.adapter, strength)
    after = models[ADAPTED] = whole if strength == 1 else adapted(run.adapter)
    if comparison is not None:
        more['scores'] = comparison.to_dict(comparison.at(strength))
        more['scores']['labels']['source'] = str(wanted.labels)
        if curve:
            more['strength'] = more['scores'].pop('strength') | {'chosen': strength}
        if wanted.quoted is not None:
            more['quoted'] = read_quoted(Path(wanted.quoted))
    if wanted.retention is not None:
        wanted.say(f'Scoring retention on {wanted.retention}.')
        row = score_pair(before, after, labeled(wanted.retention), protocol=_RETENTION).rows()[0]
        row = {k: row[k] for k in ('metric', 'title', 'source', 'adapted', 'gain')}
        more['retention'] = {'source': str(wanted.retention), 'row': row}
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
            'notation': run.notation,
            'objective': run.kind.lower(),
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
            'short': wanted.quick,
            'measured': measured,
        },
        **more,
        'label_free': {**compare_backbones(before, after, images), 'tiles': len(images), 'worth': WORTH},
        'curves': _curves(sorted(run.training.glob('metrics*.csv'))),
        'skipped': [f'{path}: {reason}' for path, reason in task.skipped.items()],
        'next': _next(run),
        'cost': _cost(run, started),
    }
    page = write_report(run.folder, report, pictures)
    return page, json.loads((run.folder / 'report.json').read_text(encoding='utf-8'))


def _curves(logs: list[Path]) -> list[dict[str, Any]]:
    """Return losses and scores over training, with resumed legs joined."""
    parts = [pd.read_csv(log) for log in logs if log.stat().st_size]
    table = pd.concat(parts).sort_values('step', kind='stable') if parts else pd.DataFrame()
    titles = {'train_loss': 'Training loss', 'train_cosine': 'Cosine to the source averaged over turns'}
    found = []
    for column, title in {**titles, **_SO_FAR}.items():
        if column in table and not (rows := table.dropna(subset=[column])).empty:
            rows = rows.drop_duplicates('step', keep='last')
            y = rows[column].tolist()
            start = {'start': y[0]} if column in _SO_FAR else {}
            found.append({'title': title, 'x': rows['step'].tolist(), 'y': y, 'x_label': 'step', **start})
    return found


def _cost(run: Run, started: float) -> dict[str, Any]:
    """Return the cost of all legs of the run, and of scoring since `started`."""
    legs = read_legs(run.training)
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
        'adapter_bytes': run.adapter.stat().st_size,
    }


def _next(run: Run) -> list[str]:
    """Return suggested follow-up commands."""
    given = (run.options.beside or run.adapter, run.folder / 'merged.safetensors', run.source.weights)
    adapter, merged, weights = (shlex.quote(str(text)) for text in given)
    tiles = shlex.quote(str(run.options.labels or 'LABELED_TILES'))
    longer = f'explora-geo adapt YOUR_TILES --weights {weights} --minutes 30 --out runs/mine'
    return [
        *([longer] if run.options.quick else []),
        f'explora-geo probe {tiles} --weights {weights} --adapter {adapter}',
        f'explora-geo map SCENE.tif --weights {weights} --adapter {adapter} --out map.tif',
        f'explora-geo adapter merge {adapter} --base {weights} --out {merged}',
    ]
