"""Choices of `adapt`: source, objective, and the settings of a run in the format of `explora-geo fit`."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from explora_geo._compat import WeightsEnum
from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.bands import RGB, same_bands
from explora_geo.checkpoints import load_backbone, load_weights
from explora_geo.checkpoints.sources import read_weights
from explora_geo.datamodules.archive import Archive, LabeledTiles
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT
from explora_geo.objectives.short_runs import SHORT_DINOV2, SHORT_OPTIM, SHORT_VIEWS, crop_sides
from explora_geo.trainers.presets import weights_objective

#: Our own objective, the default for strong sources.
ANCHOR = 'anchor'
#: Objectives beyond the paper's: they read whole images and turn them themselves.
_WHOLE = {ANCHOR: 'Anchor', 'align': 'PatchAlignment'}
#: Smallest archive, images: pictures and label-free scores need this many.
LEAST = 3
#: Objective classes by the first part of the notation.
CLASSES = {'D': 'DINOv2', 'M': 'MAE', **_WHOLE}


class Length(NamedTuple):
    """Length of an adaptation."""

    amount: float
    unit: str  # `minutes` (converted to steps once steps are timed), `steps` or `epochs`

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `30 minutes`, `600 steps` or `2 epochs`; raise ValueError for any other text."""
        match = re.fullmatch(r'(-?(?:[\d.]+(?:e[+-]?\d+)?|inf)|nan)\s*(minute|step|epoch)s?', text.strip())
        if match is None:
            raise ValueError(f'length must look like "30 minutes", "600 steps" or "2 epochs", got {text!r}')
        amount, unit = float(match[1]), f'{match[2]}s'
        if not 0 < amount < math.inf:
            raise ValueError(f'{unit} must be positive and finite, got {amount:g}')
        if unit == 'steps' and amount != int(amount):
            raise ValueError(f'steps must be a whole number, got {amount:g}')
        return cls(amount, unit)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f'{self.amount:g} {self.unit}'

    def steps(self, images: int, batch_size: int, seconds: float) -> int:
        """Return optimizer steps, at least one, given images per epoch, batch size and seconds per step."""
        if self.unit == 'steps':
            return int(self.amount)
        passes = images / batch_size
        return max(
            1, round(self.amount * passes) if self.unit == 'epochs' else int(60 * self.amount / seconds)
        )


@dataclass(frozen=True)
class Options:
    """Options that may change between calls on the same run: its scoring and its reporting."""

    labels: str | PathLike[str] | None = None  # folder of labeled tiles
    retention: str | PathLike[str] | None = None  # folder of labeled natural images
    strength: float | str = 'auto'  # share of the adapter to keep, in [0, 1]
    beside: str | PathLike[str] | None = None  # adapter file of the same source to score as well
    quick: bool = False  # demonstration: score no orientations and no intermediate strengths
    quoted: str | PathLike[str] | None = None  # JSON of scores from elsewhere; the page quotes their rivals
    force: bool = False  # adapt against advice
    say: Callable[[str], None] = lambda text: None  # receives progress messages

    @property
    def share(self) -> float | None:
        """The requested strength; None for `auto`."""
        return None if self.strength == 'auto' else float(self.strength)

    def __post_init__(self) -> None:
        """Check the values before anything is written."""
        try:
            sound = self.strength == 'auto' or 0 <= float(self.strength) <= 1
        except ValueError:
            sound = False
        if not sound:
            raise ValueError(
                'strength must be auto or between 0 (the source) and 1 (the full adapter), got '
                f'{self.strength}'
            )
        for name in ('labels', 'retention'):
            given = getattr(self, name)
            if given is not None and not Path(given).is_dir():
                raise FileNotFoundError(f'{name} folder not found: {given}; it needs a folder for each class')
        if self.quoted is not None:
            read_quoted(Path(self.quoted))
        if self.beside is not None and self.labels is None:
            raise ValueError('beside needs labels to score the adapter on: pass labels, too')


def read_quoted(file: Path) -> dict[str, Any]:
    """Read scores measured elsewhere, for quotation in reports; errors name a file without scores."""
    if not file.is_file():
        raise FileNotFoundError(f'quoted scores not found: {file}; pass a JSON file of scores')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        rows = [row for row in content['rows'] if row['metric']]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} contains no scores: quoted needs rows, as in report.json') from error
    return {'source': str(file), 'command': content.get('command'), 'rows': rows}


class Source(NamedTuple):
    """Weights to adapt."""

    weights: str  # name, path or `timm/<name>`
    model: str  # backbone name
    objective: str  # `M` or `D` if the weights state their pre-training objective, else empty
    patch_size: int  # pixels
    bands: tuple[str, ...]  # input bands of the weights

    def embeds(self, bands: Sequence[str]) -> bool:
        """Return whether the patch embedding fits these bands; if not, filters are mapped by wavelength."""
        return same_bands(self.bands, bands)

    def backbone(self, found: Archive) -> ViT:
        """Build the source, before adaptation, for the bands and image size of an archive."""
        vit = create_vit(self.model.split('.')[0], img_size=found.image_size, bands=found.bands)
        load_weights(vit, self.weights, () if self.embeds(found.bands) else ('patch_embed',), 'wavelength')
        return vit.eval()


def find_source(weights: WeightsEnum | str | PathLike[str]) -> Source:
    """Inspect the weights to adapt; they must state their backbone."""
    text = str(weights)
    try:
        given = weights if isinstance(weights, WeightsEnum) else text
        _, name, facts = read_weights(given, values=False)
    except ValueError as error:
        if not text.startswith('timm/'):
            raise
        raise ValueError(
            f'{error}; without network access, use the shipped weights: '
            '--weights ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6'
        ) from error
    if not facts.backbone:
        raise ValueError(f'{name} does not specify its backbone: use explora-geo fit and set model')
    if facts.tokenizer != 'patch':
        raise ValueError(f'{name} expects groups of bands or series of images: use explora-geo fit')
    with torch.device('meta'):
        patch_size = create_vit(facts.backbone).patch_embed.patch_size
    return Source(text, facts.backbone, weights_objective(weights), patch_size, facts.bands or RGB)


def choose_adaptation(source: Source, adaptation: str | None, force: bool) -> str:
    """Return the notation of objective and trained parts: `D-...`, `M-...`, `anchor-...` or `align-...`.

    Raise ValueError if `adaptation` names no objective, or without `force` one that destroys such weights.
    """
    masked = source.objective == 'M'
    if adaptation is None:
        return 'M-ExPLoRA-[L]-r32' if masked else f'{ANCHOR}-[L]-r32'
    letter = adaptation.strip().partition('-')[0]
    if letter not in CLASSES or ExPLoRAConfig.create(_plain(adaptation)).full:
        raise ValueError(
            'adaptation must name an objective and blocks, such as D-ExPLoRA-[L]-r32, M-ExPLoRA-[L]-r32, '
            f'anchor-[L]-r32 or align-[L]-r32, got {adaptation!r}'
        )
    with torch.device('meta'):
        explora(create_vit(source.model), ExPLoRAConfig.create(_plain(adaptation)))  # checks block numbers
    harm = None
    if letter == 'D' and masked:
        harm = 'was pre-trained by masked autoencoding, which M-ExPLoRA-[L]-r32 continues'
    if letter == 'M' and not masked:
        harm = (
            'was not pre-trained by masked autoencoding, which would degrade it within minutes (linear probe '
            'on EuroSAT drops from 0.88 to 0.70)'
        )
    if harm and not force:
        advice = 'omit --adaptation, or pass --force to adapt anyway'
        raise ValueError(f'{source.weights} {harm}: {advice}')
    return adaptation.strip()


@dataclass(frozen=True)
class Run:
    """One adaptation: its folder, archive, source, method and options."""

    folder: Path
    found: Archive
    source: Source
    notation: str  # objective and trained parts
    options: Options = Options()

    @property
    def kind(self) -> str:
        """Class name of the objective."""
        return CLASSES[self.notation.partition('-')[0]]

    @property
    def training(self) -> Path:
        """Folder of checkpoints, logs and the adapter at full strength."""
        return self.folder / 'run'

    @property
    def adapter(self) -> Path:
        """Adapter file at the chosen strength."""
        return self.folder / 'adapter.safetensors'

    @property
    def scalable(self) -> bool:
        """Whether the adapter can be scaled; one with a new patch embedding cannot."""
        return self.source.embeds(self.found.bands)

    def check(self) -> None:
        """Raise ValueError before training if the settings do not fit."""
        found, wanted, source = self.found, self.options, self.source
        if found.kind != 'scenes' and found.images < LEAST:  # scenes yield any number of windows
            raise ValueError(
                f'{found.source} has {found.images} image{"s"[: found.images != 1]}: use at least {LEAST}'
            )
        if wanted.share not in (None, 1) and not self.scalable:
            raise ValueError(
                f'strength must be 1 for the bands {", ".join(found.bands)}: {source.weights} reads '
                f'{", ".join(source.bands)}, and a new patch embedding cannot be scaled'
            )
        for given in (wanted.labels, wanted.retention):
            if given is not None:
                LabeledTiles(given, found)
        if wanted.beside is not None:
            load_backbone(source.model, source.weights, Path(wanted.beside))

    def settings(self) -> dict[str, Any]:
        """Return settings in the format of `explora-geo fit --config`; `settle` adds the length."""
        found, source, folder, adaptation = self.found, self.source, self.folder, _plain(self.notation)
        arguments: dict[str, Any] = {}
        data = dict(found.settings['init_args'])
        if self.kind == 'DINOv2':
            data['augment'] = {'vertical_flip': True, 'quarter_turns': True}  # overhead images have no up
            views = {**crop_sides(found.image_size, source.patch_size), **SHORT_VIEWS}
            arguments = {**SHORT_DINOV2, 'views': views}
        elif self.kind in _WHOLE.values():
            data['augment'] = {'crop_scale': [1.0, 1.0], 'horizontal_flip': False}
        task: dict[str, Any] = {
            'model': source.model.split('.')[0],
            'weights': source.weights,
            'img_size': found.image_size,
            'bands': list(found.bands),
            'adaptation': adaptation,
            'objective': {'class_path': f'explora_geo.objectives.{self.kind}', 'init_args': arguments},
            'optim': SHORT_OPTIM[self.kind],
            'preset': None,
            'monitor_features': 'none',
            'adapter_dtype': 'bfloat16',
        }
        if not self.scalable:
            config = ExPLoRAConfig.create(adaptation).with_extra(['patch_embed'])
            task |= {'adaptation': config.to_dict(), 'patch_embed_init': 'wavelength'}
        checkpoints = {'dirpath': str(self.training), 'save_last': True, 'save_top_k': 0}
        log = {'save_dir': str(folder), 'name': '', 'version': self.training.name}
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
    """Merge settings recursively; entries of `other` override those of `base`."""
    merged = dict(base)
    for key, value in other.items():
        both = isinstance(base.get(key), dict) and isinstance(value, dict)
        merged[key] = merge_settings(base[key], value) if both else value
    return merged


def check_folder(folder: Path, request: dict[str, Any]) -> None:
    """Raise ValueError if a folder holds anything but this run."""
    file = folder / 'request.json'
    if file.is_file():
        other = json.loads(file.read_text(encoding='utf-8'))
        differ = [k for k in request if other.get(k) != request[k]]
        if differ:
            raise ValueError(
                f'{folder} contains a run with other settings ({differ[0]} {other.get(differ[0])!r}, now '
                f'{request[differ[0]]!r}): choose another folder with --out, or repeat that command'
            )
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is a file: choose a folder with --out')
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f'{folder} contains other files: choose another folder with --out')


def _plain(notation: str) -> str:
    """Return a notation without the name of an objective beyond the paper's."""
    first, _, rest = notation.strip().partition('-')
    return rest if first in _WHOLE else notation.strip()
