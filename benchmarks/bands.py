"""M-ExPLoRA on 13-band Sentinel-2 tiles: groups of bands, two starts of their patch embeddings, probes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from sklearn.model_selection import train_test_split
from torch import Tensor

from explora_geo._atomic import atomic_path
from explora_geo.checkpoints import load_backbone
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.demo.run import plain
from explora_geo.evaluation import extract_features, feature_sets, linear_probe, mean_interval
from explora_geo.models import ViT
from explora_geo.models.tokenizers import SENTINEL2
from explora_geo.transforms import training_view

from .training import BACKBONE, SOURCE, HeldOutLoss, build_task, fit, plot_losses

ADAPTATION = 'M-ExPLoRA-[1,L]-r32'
BATCH = 16
STARTS = {'random': 'at random (paper)', 'wavelength': 'from RGB by wavelength'}
#: Bands of each group that are shown as red, green and blue.
SHOWN = {
    'visible': ('B04', 'B03', 'B02'),
    'red edge': ('B8A', 'B06', 'B05'),
    'short-wave': ('B12', 'B11', 'B11'),
}


def run_bands(out: Path, tiles: Path, steps: int = 100, seeds: int = 3, lr: float = 2e-3) -> Path:
    """Adapt the shipped RGB model to groups of bands, and write table, curves and reconstructions.

    For each seed 70 % of the tiles are adapted to without labels and lend the labels of a linear probe,
    the others are only ever tested on.

    Args:
        out: Folder of `bands.json`, `bands.md` and `bands.png`.
        tiles: Folder of 13-band EuroSAT tiles by class.
        steps: Optimiser steps of 16 tiles.
        seeds: Splits and runs.
        lr: Learning rate.

    Returns:
        The Markdown file.
    """
    dataset = FolderDataset(tiles, file_bands=MS_BANDS, bands=SENTINEL2, labelled=True)
    samples = [dataset[i] for i in range(len(dataset))]
    samples = [s for s in samples if 'image' in s]
    images, labels = (torch.stack([s[k] for s in samples]) for k in ('image', 'label'))
    scores: dict[str, list[float]] = {}
    curves: dict[str, list[HeldOutLoss]] = {}
    picture: Any = None
    for seed in range(seeds):
        parts = train_test_split(np.arange(len(images)), test_size=0.3, random_state=seed, stratify=labels)
        std, mean = torch.std_mean(images[parts[0]], dim=(0, 2, 3))
        normal = (images - mean[:, None, None]) / std[:, None, None]
        colours = [SENTINEL2.index(band) for band in ('B04', 'B03', 'B02')]
        rgb = load_backbone(BACKBONE, SOURCE, learned_position=False)
        _add(scores, 'RGB source on B04, B03, B02', _probe(rgb, normal[:, colours], labels, parts, seed))
        view = training_view(mean, std, 64, vertical_flip=True, quarter_turns=True)
        for start, title in STARTS.items():
            torch.manual_seed(seed)
            task = build_task('group-channel', ADAPTATION, lr, patch_embed_init=start)
            _add(
                scores,
                f'embeddings {title}, before',
                _probe(plain(task.backbone), normal, labels, parts, seed),
            )
            held_out = {'image': normal[parts[1]]}
            train = [{'image': images[i]} for i in parts[0]]
            losses = fit(task, train, view, held_out, steps, BATCH, seed)
            _add(curves, f'embeddings {title}', losses)
            _add(
                scores,
                f'embeddings {title}, after',
                _probe(plain(task.backbone), normal, labels, parts, seed),
            )
            picture = task, normal[parts[1][:3]]
    gains = {
        'gain, random': _difference(scores, STARTS['random'], 'after', 'before'),
        'gain, wavelength': _difference(scores, STARTS['wavelength'], 'after', 'before'),
        'wavelength against random, after': [
            b - a for a, b in zip(*(scores[f'embeddings {STARTS[s]}, after'] for s in STARTS), strict=True)
        ],
    }
    last = {name: [c.held_out[-1][1] for c in runs] for name, runs in curves.items()}
    text = _markdown(scores, gains, last, tiles.name, len(images), steps, seeds, task.load_report)
    content = {
        **{'tiles': len(images), 'steps': steps, 'lr': lr, 'scores': scores, 'gains': gains},
        'held_out': {name: [c.held_out for c in runs] for name, runs in curves.items()},
    }
    for name, body in (('bands.json', json.dumps(content, indent=1)), ('bands.md', text)):
        with atomic_path(out / name) as temporary:
            temporary.write_text(body)
    _draw(out / 'bands.png', picture, curves)
    Console().print(text, markup=False)
    return out / 'bands.md'


def _add(table: dict[str, list[Any]], name: str, value: Any) -> None:
    table.setdefault(name, []).append(value)


def _probe(vit: ViT, images: Tensor, labels: Tensor, parts: Sequence[Any], seed: int) -> float:
    """Test accuracy of a linear probe whose setting is chosen within the training part."""
    batches = [{'image': x, 'label': y} for x, y in zip(images.split(100), labels.split(100), strict=True)]
    with torch.autocast('cpu', torch.bfloat16):
        found, y = extract_features(vit, batches)
    sets = feature_sets(found)
    train, test = parts
    fit_part, choose = train_test_split(train, test_size=0.25, random_state=seed, stratify=y[train])
    pick = [{k: v[index] for k, v in sets.items()} for index in (fit_part, choose, test)]
    return linear_probe(pick[0], y[fit_part], pick[1], y[choose], pick[2], y[test]).accuracy


def _difference(scores: dict[str, list[float]], title: str, one: str, two: str) -> list[float]:
    pairs = zip(scores[f'embeddings {title}, {one}'], scores[f'embeddings {title}, {two}'], strict=True)
    return [a - b for a, b in pairs]


def _markdown(
    scores: dict[str, list[float]],
    gains: dict[str, list[float]],
    losses: dict[str, list[float]],
    name: str,
    count: int,
    steps: int,
    seeds: int,
    report: str,
) -> str:
    lines = [
        '# Groups of bands on Sentinel-2 tiles',
        '',
        f'A demonstration on {count} tiles ({name}), not a result: {ADAPTATION} from {BACKBONE} '
        f'({SOURCE.name}), {steps} steps of {BATCH} tiles, {seeds} seeds (splits of 70 % and 30 %). Linear '
        'probe on tiles that were never trained on; mean and 95 % interval over seeds, which share their '
        'splits.',
        '',
        '| backbone | linear probe, % |',
        '|---|---|',
    ]
    lines += [f'| {name} | {mean_interval(values)} |' for name, values in scores.items()]
    lines += ['', '| paired difference | points |', '|---|---|']
    lines += [f'| {name} | {mean_interval(values)} |' for name, values in gains.items()]
    lines += ['', '| held-out loss after the last step | mean and interval |', '|---|---|']
    for name, values in losses.items():
        found = mean_interval(values)
        lines.append(f'| {name} | {found.mean:.3f} ± {found.half:.3f} |')
    return '\n'.join(
        [*lines, '', f'Loaded: {report.split(": ", 1)[1]}', '', '![reconstructions](bands.png)', '']
    )


def _draw(path: Path, picture: tuple[Any, Tensor], curves: dict[str, list[HeldOutLoss]]) -> None:
    """Input, masked input and reconstruction of each group of three held-out tiles, and the losses."""
    task, images = picture
    torch.manual_seed(0)
    shown = {'input': images, **task.model.pictures(images)}
    figure = plt.figure(figsize=(12, 8), layout='constrained')
    panels: Any = figure.subfigures(2, 1, height_ratios=[5, 3])
    grid = panels[0].subplots(3, 9)
    for column, (group, bands) in enumerate(SHOWN.items()):
        chosen = [SENTINEL2.index(band) for band in bands]
        # Each tile between its own 2nd and 98th percentile, or dark tiles would be black.
        pixels = images[:, chosen].flatten(1)
        low, high = (torch.quantile(pixels, q, dim=1).view(-1, 1, 1, 1) for q in (0.02, 0.98))
        for k, (title, values) in enumerate(shown.items()):
            colours = ((values[:, chosen] - low) / (high - low)).clamp(0, 1)
            for row in range(3):
                axis = grid[row, 3 * column + k]
                axis.imshow(colours[row].permute(1, 2, 0), interpolation='nearest')
                axis.set_axis_off()
                if row == 0:
                    axis.set_title(f'{group}\n{title}', fontsize=9)
    plot_losses(panels[1].subplots(), curves)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')
    plt.close(figure)
