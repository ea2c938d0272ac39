"""M-ExPLoRA on dates of one scene: what other dates of a place tell about its removed patches."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from torch import Tensor

from explora_geo._atomic import atomic_path
from explora_geo.datasets import SceneDataset
from explora_geo.datasets.fmow import FIRST_YEAR
from explora_geo.models.tokenizers import RGB
from explora_geo.transforms import FramesAsChannels, training_view

from .training import BACKBONE, SOURCE, HeldOutLoss, build_task, fit, plot_losses

ADAPTATION = 'M-ExPLoRA-[L]-r32'
SIZE, BATCH = 64, 8
RUNS: dict[str, dict[str, Any]] = {
    'one date': {},
    'all dates': {},
    'all dates, the same patches removed': {'shared_across_slots': True},
}


def run_dates(out: Path, scenes: Path, steps: int = 100, lr: float = 2e-3) -> Path:
    """Adapt the shipped RGB model to series of windows, and write table, curves and reconstructions.

    The eastern third of the scene is held out.

    Args:
        out: Folder of `dates.json`, `dates.md` and `dates.png`.
        scenes: Folder of four-band scenes of one place with the date in their names.
        steps: Optimiser steps of 8 series (or as many single images).
        lr: Learning rate.

    Returns:
        The Markdown file.
    """
    train, test, times = read_series(scenes)
    std, mean = torch.std_mean(train, dim=(0, 1, 3, 4))
    normal = (test - mean[:, None, None]) / std[:, None, None]
    curves: dict[str, list[HeldOutLoss]] = {}
    picture: Any = None
    for name, options in RUNS.items():
        frames = 1 if name == 'one date' else len(times)
        series, held, stamps = _cut(train, frames), _cut(normal, frames), _times(times, frames)
        torch.manual_seed(0)
        task = build_task('temporal', ADAPTATION, lr, tokenizer_options={'num_frames': frames}, **options)
        statistics = mean.repeat(frames), std.repeat(frames)
        view = FramesAsChannels(training_view(*statistics, SIZE, (0.5, 1.0), vertical_flip=True))
        samples = [{'image': x, 'timestamps': stamps[i % len(stamps)]} for i, x in enumerate(series)]
        held_out = {'image': held, 'timestamps': stamps.repeat(len(held) // len(stamps), 1, 1)}
        curves[name] = [fit(task, samples, view, held_out, steps, BATCH * len(times) // frames, 0)]
        if name == 'all dates':
            picture = task, held[:3], held_out['timestamps'][:3]
    losses = {name: [c.held_out for c in runs] for name, runs in curves.items()}
    content = {'dates': len(times), 'train': len(train), 'held_out': len(test), 'losses': losses}
    text = _markdown(curves, len(train), len(test), times, steps)
    for file, body in (('dates.json', json.dumps(content, indent=1)), ('dates.md', text)):
        with atomic_path(out / file) as temporary:
            temporary.write_text(body)
    _draw(out / 'dates.png', picture, curves)
    Console().print(text, markup=False)
    return out / 'dates.md'


def read_series(scenes: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of all dates of a place.

    Args:
        scenes: Folder of scenes.

    Returns:
        Training and held-out windows, each of shape (N, T, 3, 64, 64) in units of the files, and the time
        of each date (the hour is not known and set to noon), shape (T, 3).
    """
    dataset = SceneDataset(scenes, bands=RGB, file_bands=(*RGB, 'nir'))
    boxes = dataset.index.geometry.bounds
    west, south = boxes[['minx', 'miny']].max()
    east, north = boxes[['maxx', 'maxy']].min()
    step = SIZE * dataset.res[0], SIZE * dataset.res[1]
    border = west + (east - west) * 2 / 3
    train = _windows(dataset, (west, south, border, north), step, 0.5)
    test = _windows(dataset, (border, south, east, north), step, 1.0)
    days = [interval.left for interval in dataset.index.index]
    return train, test, torch.tensor([[d.year - FIRST_YEAR, d.month - 1, 12] for d in days])


def _windows(
    dataset: SceneDataset, box: tuple[float, float, float, float], step: tuple[float, float], stride: float
) -> Tensor:
    west, south, east, north = box
    found = []
    y = north
    while y - step[1] >= south:
        x = west
        while x + step[0] <= east:
            place = slice(x, x + step[0]), slice(y - step[1], y)
            frames = [dataset[(*place, slice(t.left, t.right))] for t in dataset.index.index]
            found.append(torch.stack([f['image'] for f in frames]))
            x += stride * step[0]
        y -= stride * step[1]
    return torch.stack(found)


def _cut(series: Tensor, frames: int) -> Tensor:
    """Series of so many frames, shape (N·T/frames, frames, C, H, W)."""
    return series.flatten(0, 1).unflatten(0, (-1, frames))


def _times(times: Tensor, frames: int) -> Tensor:
    """Times of the cut series of one place, shape (T/frames, frames, 3)."""
    return times.unflatten(0, (-1, frames))


def _markdown(curves: dict[str, list[HeldOutLoss]], train: int, test: int, times: Tensor, steps: int) -> str:
    years = ', '.join(str(int(t) + FIRST_YEAR) for t in times[:, 0])
    lines = [
        '# Dates of one scene',
        '',
        f'A demonstration on one scene, not a result: {ADAPTATION} from {BACKBONE} ({SOURCE.name}), '
        f'{steps} steps of {BATCH} windows of {SIZE} px at {len(times)} dates ({years}); {train} overlapping '
        f'windows of the western two thirds, {test} of the eastern third held out. 75 % of the patches are '
        'removed; the loss is that of normalised pixels, where 1 is the mean of a patch.',
        '',
        '| frames | held-out loss at the start | after the last step |',
        '|---|---|---|',
    ]
    for name, (losses,) in curves.items():
        lines.append(f'| {name} | {losses.held_out[0][1]:.3f} | {losses.held_out[-1][1]:.3f} |')
    return '\n'.join([*lines, '', '![reconstructions](dates.png)', ''])


def _draw(path: Path, picture: tuple[Any, Tensor, Tensor], curves: dict[str, list[HeldOutLoss]]) -> None:
    """Input, masked input and reconstruction of the dates of three places, and the losses."""
    task, images, times = picture
    torch.manual_seed(0)
    shown = {'input': images, **task.model.pictures(images, times)}
    dates = images.shape[1]
    figure = plt.figure(figsize=(12, 8), layout='constrained')
    panels: Any = figure.subfigures(2, 1, height_ratios=[5, 3])
    grid = panels[0].subplots(3, 3 * dates)
    # Each date of each place between its own 2nd and 98th percentile.
    pixels = images.flatten(2)
    low, high = (torch.quantile(pixels, q, dim=2)[..., None, None, None] for q in (0.02, 0.98))
    for date in range(dates):
        for k, (title, values) in enumerate(shown.items()):
            for row in range(3):
                axis = grid[row, 3 * date + k]
                colours = ((values - low) / (high - low))[row, date].clamp(0, 1)
                axis.imshow(colours.permute(1, 2, 0), interpolation='nearest')
                axis.set_axis_off()
                if row == 0:
                    axis.set_title(f'{int(times[0, date, 0]) + FIRST_YEAR}\n{title}', fontsize=9)
    plot_losses(panels[1].subplots(), curves)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format='png')
    plt.close(figure)
