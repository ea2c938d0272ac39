"""What `adapt` chooses: weights, objective, and the settings of a run as `explora-geo fit` reads them."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from explora_geo._compat import WeightsEnum
from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.bands import RGB, same_bands
from explora_geo.checkpoints import load_weights
from explora_geo.checkpoints.metadata import stated_bands, stated_tokenizer
from explora_geo.checkpoints.sources import read_weights
from explora_geo.datamodules.archive import Archive
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT
from explora_geo.objectives.short_runs import SHORT_DINOV2, SHORT_OPTIM, SHORT_VIEWS, crop_sides
from explora_geo.trainers.presets import weights_objective

#: The objective of ours, by which strong sources are adapted unless D or M is asked for.
ANCHOR = 'anchor'
_CLASSES = {'D': 'DINOv2', 'M': 'MAE', ANCHOR: 'Anchor'}


@dataclass(frozen=True)
class Length:
    """How long to adapt.

    Attributes:
        amount: Number of units, positive.
        unit: `minutes`, which become steps once the machine is known, `steps` or `epochs`.
    """

    amount: float
    unit: Literal['minutes', 'steps', 'epochs']

    def __post_init__(self) -> None:
        """Check the values."""
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise ValueError(f'{self.unit} must be above 0, got {self.amount:g}')
        if self.unit == 'steps' and self.amount != int(self.amount):
            raise ValueError(f'steps must be a whole number, got {self.amount:g}')

    @classmethod
    def parse(cls, text: 'str | Length') -> 'Length':
        """Read `30 minutes`, `600 steps` or `2 epochs`.

        Raises:
            ValueError: If the text is something else.
        """
        if isinstance(text, Length):
            return text
        match = re.fullmatch(r'(-?[0-9.]+)\s*(minute|step|epoch)s?', text.strip())
        if match is None:
            raise ValueError(f'length must be such as "30 minutes", "600 steps" or "2 epochs", got {text!r}')
        return cls(float(match[1]), f'{match[2]}s')  # type: ignore[arg-type]

    def __str__(self) -> str:
        """Text that `parse` reads."""
        return f'{self.amount:g} {self.unit}'

    def steps(self, images: int, batch_size: int, seconds: float) -> int:
        """Optimizer steps, at least one.

        Args:
            images: Images of one pass over the archive.
            batch_size: Images of a step.
            seconds: What a step takes.
        """
        if self.unit == 'steps':
            return int(self.amount)
        if self.unit == 'epochs':
            return max(1, round(self.amount * images / batch_size))
        return max(1, int(60 * self.amount / seconds))


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
class Source:
    """The weights that are adapted.

    Attributes:
        weights: Name, path or `timm/<name>`.
        model: Name of the backbone.
        objective: `M` or `D` where the weights say which objective made them, else nothing.
        patch_size: Patch side, pixels.
        bands: Names of the bands that the weights read.
    """

    weights: str
    model: str
    objective: str
    patch_size: int
    bands: tuple[str, ...] = RGB

    def embeds(self, bands: Sequence[str]) -> bool:
        """Whether the patch embedding reads these bands; else one starts from its filters by wavelength."""
        return same_bands(self.bands, bands)

    def backbone(self, found: Archive) -> ViT:
        """The source as it reads an archive, before anything trains."""
        vit = create_vit(self.model.split('.')[0], img_size=found.image_size, bands=found.bands)
        load_weights(vit, self.weights, () if self.embeds(found.bands) else ('patch_embed',), 'wavelength')
        return vit.eval()


def find_source(weights: WeightsEnum | str | PathLike[str]) -> Source:
    """Look at the weights that are to be adapted.

    Args:
        weights: A `WeightsEnum` or its name, a file, or `timm/<name>`.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the weights cannot be had or read, or do not say which backbone they are.
    """
    text = str(weights)
    try:
        _, meta, name = read_weights(weights if isinstance(weights, WeightsEnum) else text, values=False)
    except ValueError as error:
        if not text.startswith('timm/'):
            raise
        raise ValueError(
            f'{error}; without a network, adapt weights that ship: '
            '--weights ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6'
        ) from error
    model = meta.get('backbone')
    if model is None:
        raise ValueError(
            f'{name} does not say which backbone it is: adapt it with explora-geo fit, which asks'
        )
    if stated_tokenizer(meta, name).get('tokenizer', 'patch') != 'patch':
        raise ValueError(f'{name} reads groups of bands or dates: adapt it with explora-geo fit')
    with torch.device('meta'):
        patch_size = create_vit(model).patch_embed.patch_size
    bands = stated_bands(meta, name) or RGB
    return Source(text, model, weights_objective(weights), patch_size, bands)


def choose_adaptation(source: Source, adaptation: str | None, force: bool) -> str:
    """Notation of what trains, by which objective: `D-...`, `M-...` or `anchor-...`.

    Args:
        source: The weights.
        adaptation: What was asked for, or None.
        force: Do what does harm.

    Raises:
        ValueError: If the notation names no objective, or one that destroys such weights.
    """
    if adaptation is None:
        return 'M-ExPLoRA-[L]-r32' if source.objective == 'M' else f'{ANCHOR}-[L]-r32'
    letter = adaptation.strip().partition('-')[0]
    if letter not in _CLASSES or ExPLoRAConfig.create(_plain(adaptation)).full:
        raise ValueError(
            f'adaptation must name objective and blocks, as D-ExPLoRA-[L]-r32, M-ExPLoRA-[L]-r32 or '
            f'{ANCHOR}-[L]-r32, got {adaptation!r}'
        )
    with torch.device('meta'):
        explora(create_vit(source.model), ExPLoRAConfig.create(_plain(adaptation)))  # names blocks that exist
    if letter == 'D' and source.objective == 'M' and not force:
        raise ValueError(
            f'{source.weights} were made by masked autoencoding, which M-ExPLoRA-[L]-r32 goes on with: leave '
            '--adaptation out, or insist with explora-geo adapt --force'
        )
    if letter == 'M' and source.objective != 'M' and not force:
        raise ValueError(
            f'{source.weights} were not made by masked autoencoding, which would undo them within minutes '
            '(linear probe on EuroSAT from 0.88 to 0.70): leave --adaptation out, or insist with '
            'explora-geo adapt --force'
        )
    return adaptation.strip()


def run_settings(found: Archive, source: Source, notation: str, folder: Path) -> dict[str, Any]:
    """Settings of the run, as `explora-geo fit --config` reads them; its length is settled later.

    Args:
        found: The archive.
        source: The weights.
        notation: What trains, by which objective.
        folder: Folder of the run.
    """
    kind = _CLASSES[notation.partition('-')[0]]
    arguments: dict[str, Any] = {}
    data = dict(found.settings['init_args'])
    if kind == 'DINOv2':
        data['augment'] = {'vertical_flip': True, 'quarter_turns': True}  # seen from above, no side is up
        views = {**crop_sides(found.image_size, source.patch_size), **SHORT_VIEWS}
        arguments = {**SHORT_DINOV2, 'views': views}
    elif kind == 'Anchor':
        # The objective turns images itself, and sees them whole, as they are used.
        data['augment'] = {'crop_scale': [1.0, 1.0], 'horizontal_flip': False}
    task: dict[str, Any] = {
        'model': source.model.split('.')[0],
        'weights': source.weights,
        'img_size': found.image_size,
        'bands': list(found.bands),
        'adaptation': _plain(notation),
        'objective': {'class_path': f'explora_geo.objectives.{kind}', 'init_args': arguments},
        'optim': SHORT_OPTIM[kind],
        'preset': None,
        'monitor_features': 'none',
        'adapter_dtype': 'bfloat16',
    }
    if not source.embeds(found.bands):
        config = ExPLoRAConfig.create(_plain(notation)).with_extra(['patch_embed'])
        task |= {'adaptation': config.to_dict(), 'patch_embed_init': 'wavelength'}
    checkpoints = {'dirpath': str(folder / 'run'), 'save_last': True, 'save_top_k': 0}
    log = {'save_dir': str(folder), 'name': '', 'version': 'run'}
    return {
        'seed_everything': 0,
        'trainer': {
            'devices': 1,
            'gradient_clip_val': 3.0,
            'limit_val_batches': 0,
            'default_root_dir': str(folder),
            'logger': {'class_path': 'lightning.pytorch.loggers.CSVLogger', 'init_args': log},
            'callbacks': [
                {'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint', 'init_args': checkpoints}
            ],
        },
        'model': {'class_path': 'explora_geo.trainers.ExPLoRATask', 'init_args': task},
        'data': {**found.settings, 'init_args': data},
    }


def merge_settings(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Settings with the entries of others in their place, level by level."""
    merged = dict(base)
    for key, value in other.items():
        mine = merged.get(key)
        merged[key] = (
            merge_settings(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
        )
    return merged


def check_folder(folder: Path, request: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than this very run.

    Raises:
        ValueError: If it does.
    """
    file = folder / 'request.json'
    if file.is_file():
        other = json.loads(file.read_text(encoding='utf-8'))
        differ = [k for k in request if other.get(k) != request[k]]
        if differ:
            raise ValueError(
                f'{folder} holds the run of another command ({differ[0]} {other.get(differ[0])!r}, now '
                f'{request[differ[0]]!r}): give another folder with --out, or repeat that command'
            )
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is a file: give a folder with --out')
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'{folder} holds other files: give another folder with --out')


def _plain(notation: str) -> str:
    """Notation without the name of an objective that the paper does not have."""
    return notation.strip().removeprefix(f'{ANCHOR}-')
