"""What `adapt` chooses: weights, objective, and the settings of a run as `explora-geo fit` reads them."""

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

#: The objective of ours, by which strong sources are adapted unless another is asked for.
ANCHOR = 'anchor'
#: Objectives that the paper does not have: they look at whole images and turn them themselves.
_WHOLE = {ANCHOR: 'Anchor', 'align': 'PatchAlignment'}
#: Images of the archive, at least: pictures and label-free scores need as many.
LEAST = 3
#: Classes of objectives by what begins a notation.
CLASSES = {'D': 'DINOv2', 'M': 'MAE', **_WHOLE}


class Length(NamedTuple):
    """How long to adapt."""

    amount: float
    unit: str  # `minutes`, which become steps once the machine is known, `steps` or `epochs`

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `30 minutes`, `600 steps` or `2 epochs`; a ValueError if the text is something else."""
        match = re.fullmatch(r'(-?(?:[\d.]+(?:e[+-]?\d+)?|inf)|nan)\s*(minute|step|epoch)s?', text.strip())
        if match is None:
            raise ValueError(f'length must be such as "30 minutes", "600 steps" or "2 epochs", got {text!r}')
        amount, unit = float(match[1]), f'{match[2]}s'
        if not 0 < amount < math.inf:
            raise ValueError(f'{unit} must be above 0, got {amount:g}')
        if unit == 'steps' and amount != int(amount):
            raise ValueError(f'steps must be a whole number, got {amount:g}')
        return cls(amount, unit)

    def __str__(self) -> str:
        """Text that `parse` reads."""
        return f'{self.amount:g} {self.unit}'

    def steps(self, images: int, batch_size: int, seconds: float) -> int:
        """Optimizer steps, at least one, where a pass has so many images and a step takes so many seconds."""
        if self.unit == 'steps':
            return int(self.amount)
        passes = images / batch_size
        return max(
            1, round(self.amount * passes) if self.unit == 'epochs' else int(60 * self.amount / seconds)
        )


@dataclass(frozen=True)
class Options:
    """What may change between calls on the same run: what it is measured by, and how it is told."""

    labels: str | PathLike[str] | None = None  # folder of labeled tiles
    retention: str | PathLike[str] | None = None  # folder of labeled natural images
    strength: float | str = 'auto'  # share of the adapter that is kept, in [0, 1]
    beside: str | PathLike[str] | None = None  # adapter file of the same weights that is scored, too
    quick: bool = False  # only shows how it goes: without orientations, and strengths between
    quoted: str | PathLike[str] | None = None  # JSON of scores from elsewhere whose rivals the page quotes
    force: bool = False  # adapt against advice
    say: Callable[[str], None] = lambda text: None  # told what is done

    @property
    def share(self) -> float | None:
        """The strength, or None if it is chosen."""
        return None if self.strength == 'auto' else float(self.strength)

    def __post_init__(self) -> None:
        """Check what can be checked before anything is written."""
        try:
            sound = self.strength == 'auto' or 0 <= float(self.strength) <= 1
        except ValueError:
            sound = False
        if not sound:
            raise ValueError(
                'strength must be auto, or from 0 (the source) to 1 (all of the adapter), got '
                f'{self.strength}'
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
    """Scores that were measured elsewhere, as reports quote them; an error names the file without any."""
    if not file.is_file():
        raise FileNotFoundError(f'no file {file}: quoted is a JSON file of scores')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        rows = [row for row in content['rows'] if row['metric']]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file} holds no scores: quoted needs rows, as report.json has them') from error
    return {'source': str(file), 'command': content.get('command'), 'rows': rows}


class Source(NamedTuple):
    """The weights that are adapted."""

    weights: str  # name, path or `timm/<name>`
    model: str  # name of the backbone
    objective: str  # `M` or `D` where the weights say which objective made them, else nothing
    patch_size: int  # pixels
    bands: tuple[str, ...]  # that the weights read

    def embeds(self, bands: Sequence[str]) -> bool:
        """Whether the patch embedding reads these bands; else one starts from its filters by wavelength."""
        return same_bands(self.bands, bands)

    def backbone(self, found: Archive) -> ViT:
        """The source as it reads an archive, before anything trains."""
        vit = create_vit(self.model.split('.')[0], img_size=found.image_size, bands=found.bands)
        load_weights(vit, self.weights, () if self.embeds(found.bands) else ('patch_embed',), 'wavelength')
        return vit.eval()


def find_source(weights: WeightsEnum | str | PathLike[str]) -> Source:
    """Look at the weights that are to be adapted, which must say which backbone they are."""
    text = str(weights)
    try:
        given = weights if isinstance(weights, WeightsEnum) else text
        _, name, facts = read_weights(given, values=False)
    except ValueError as error:
        if not text.startswith('timm/'):
            raise
        raise ValueError(
            f'{error}; without a network, adapt weights that ship: '
            '--weights ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6'
        ) from error
    if not facts.backbone:
        raise ValueError(
            f'{name} does not say which backbone it is: adapt it with explora-geo fit, which asks'
        )
    if facts.tokenizer != 'patch':
        raise ValueError(f'{name} reads groups of bands or dates: adapt it with explora-geo fit')
    with torch.device('meta'):
        patch_size = create_vit(facts.backbone).patch_embed.patch_size
    return Source(text, facts.backbone, weights_objective(weights), patch_size, facts.bands or RGB)


def choose_adaptation(source: Source, adaptation: str | None, force: bool) -> str:
    """Notation of what trains, by which objective: `D-...`, `M-...`, `anchor-...` or `align-...`.

    A ValueError if what was asked for names no objective, or one that destroys such weights without `force`.
    """
    masked = source.objective == 'M'
    if adaptation is None:
        return 'M-ExPLoRA-[L]-r32' if masked else f'{ANCHOR}-[L]-r32'
    letter = adaptation.strip().partition('-')[0]
    if letter not in CLASSES or ExPLoRAConfig.create(_plain(adaptation)).full:
        raise ValueError(
            'adaptation must name objective and blocks, as D-ExPLoRA-[L]-r32, M-ExPLoRA-[L]-r32, '
            f'anchor-[L]-r32 or align-[L]-r32, got {adaptation!r}'
        )
    with torch.device('meta'):
        explora(create_vit(source.model), ExPLoRAConfig.create(_plain(adaptation)))  # names blocks that exist
    harm = None
    if letter == 'D' and masked:
        harm = 'were made by masked autoencoding, which M-ExPLoRA-[L]-r32 goes on with'
    if letter == 'M' and not masked:
        harm = (
            'were not made by masked autoencoding, which would undo them within minutes (linear probe on '
            'EuroSAT from 0.88 to 0.70)'
        )
    if harm and not force:
        advice = 'leave --adaptation out, or insist with explora-geo adapt --force'
        raise ValueError(f'{source.weights} {harm}: {advice}')
    return adaptation.strip()


@dataclass(frozen=True)
class Run:
    """One adaptation: of what, by what, where it is kept, and what it is measured by."""

    folder: Path
    found: Archive
    source: Source
    notation: str  # objective and what trains
    options: Options = Options()

    @property
    def kind(self) -> str:
        """Class of the objective."""
        return CLASSES[self.notation.partition('-')[0]]

    @property
    def training(self) -> Path:
        """Folder of checkpoints, logs and the adapter as it was trained."""
        return self.folder / 'run'

    @property
    def adapter(self) -> Path:
        """File of the adapter at the strength that is kept."""
        return self.folder / 'adapter.safetensors'

    @property
    def scalable(self) -> bool:
        """Whether a part of the adapter can be taken: not of a patch embedding that is new."""
        return self.source.embeds(self.found.bands)

    def check(self) -> None:
        """Refuse now, and not after training, what does not fit, by a ValueError."""
        found, wanted, source = self.found, self.options, self.source
        if found.kind != 'scenes' and found.images < LEAST:  # scenes are cut anew as often as it takes
            raise ValueError(
                f'{found.source} holds {found.images} image{"s"[: found.images != 1]}: give {LEAST} or more'
            )
        if wanted.share not in (None, 1) and not self.scalable:
            raise ValueError(
                f'strength must be 1 for the bands {", ".join(found.bands)}: {source.weights} read '
                f'{", ".join(source.bands)}, and no part of a new patch embedding can be taken'
            )
        for given in (wanted.labels, wanted.retention):
            if given is not None:
                LabeledTiles(given, found)
        if wanted.beside is not None:
            load_backbone(source.model, source.weights, Path(wanted.beside))

    def settings(self) -> dict[str, Any]:
        """Settings as `explora-geo fit --config` reads them; the length is settled later."""
        found, source, folder, adaptation = self.found, self.source, self.folder, _plain(self.notation)
        arguments: dict[str, Any] = {}
        data = dict(found.settings['init_args'])
        if self.kind == 'DINOv2':
            data['augment'] = {'vertical_flip': True, 'quarter_turns': True}  # seen from above, no side is up
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
    """Settings with the entries of others in their place, level by level."""
    merged = dict(base)
    for key, value in other.items():
        both = isinstance(base.get(key), dict) and isinstance(value, dict)
        merged[key] = merge_settings(base[key], value) if both else value
    return merged


def check_folder(folder: Path, request: dict[str, Any]) -> None:
    """Refuse, by a ValueError, a folder that holds something else than this very run."""
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
    first, _, rest = notation.strip().partition('-')
    return rest if first in _WHOLE else notation.strip()
