"""Jobs of the study: combinations of the entries in `conf/study.yaml`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from explora_geo.objectives.short_runs import SHORT_DINOV2, SHORT_OPTIM, SHORT_VIEWS, crop_sides

from ..tables.files import laid_over
from ..tables.recipe import OBJECTIVES, Recipe, read_recipe
from .domains import LABELED
from .rivals import RIVALS

OBJECTIVES.update(RIVALS)
#: Whitening power, if any, and number of orientations averaged.
VARIANTS: dict[str, tuple[float | None, int]] = {
    **{'one': (None, 1), 'turns4': (None, 4), 'turns8': (None, 8)},
    **{'white0.5': (0.5, 1), 'white1': (1.0, 1), 'white1x4': (1.0, 4)},
}
#: Mean patches of the last four blocks, concatenated.
FOUR = 'last4'
ADAPTED = 'one', 'turns4', 'white1', 'white1x4'
FILE = Path(__file__).parents[1] / 'conf' / 'study.yaml'
_VIEWS = {**SHORT_VIEWS, 'vertical_flip': True, 'quarter_turns': True}
_DINOV2 = {**SHORT_DINOV2, 'phases': {'head_warmup_fraction': 0.0}, 'views': _VIEWS}


@dataclass(frozen=True)
class Job:
    """One adaptation and its scores."""

    group: str  # purpose
    name: str  # name of the recipe
    source: str  # key of `SOURCES`
    domain: str  # domain to adapt to
    values: Mapping[str, Any]  # changes to the recipe of short runs, as `read_recipe` reads them
    views: int  # images to see
    seed: int = 0  # seed of all random draws
    images: int = 0  # number of archive images to adapt to, all if 0
    transfer: tuple[str, ...] = ()  # also score the other domains
    save: bool = False  # keep the adapter
    variants: tuple[str, ...] = ADAPTED  # feature readouts: keys of `VARIANTS`, `block3`, or `FOUR`
    extras: tuple[str, ...] = ('label_free',)  # any of this, `attention` and `blocks`
    budgets: tuple[int, ...] = ()  # labels per class of further linear probes, all if 0
    tuned: bool = False  # also tune LoRA-r8 with each budget

    @property
    def model(self) -> str:
        """Name of the adapted model, which jobs of several groups may share."""
        images = f'-n{self.images}' if self.images else ''
        return f'{self.name}.{self.source}.{self.domain}.{self.views}{images}.{self.seed}'

    @property
    def key(self) -> str:
        """Name of the job."""
        return self.model + ('.labels' if self.budgets else f'.{FOUR}' if FOUR in self.variants else '')

    def recipe(self, archive: int, side: int, patch: int) -> Recipe:
        """Return the recipe for an archive of this many images, with image side and patch size in pixels."""
        base: dict[str, Any] = dict(SHORT_OPTIM.get(self.values['objective'], SHORT_OPTIM['Anchor']))
        if self.values['objective'] == 'DINOv2':
            base['arguments'] = laid_over(_DINOV2, {'views': crop_sides(side, patch)})
        batch = min(self.values['batch_size'], archive)
        length = {'batch_size': batch, 'steps': max(1, self.views // batch)}
        return read_recipe({**laid_over(base, self.values), **length}, self.name)


def read_groups(file: Path = FILE) -> dict[str, list[Job]]:
    """Return the jobs of every group."""
    content = yaml.safe_load(file.read_text(encoding='utf-8'))
    return {
        group: [job for entry in entries for job in _expand(group, entry, content['recipes'])]
        for group, entries in content['groups'].items()
    }


def _expand(group: str, entry: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Job]:
    recipes = entry['recipes']
    recipes = recipes if isinstance(recipes, dict) else {name: known[name] for name in recipes}
    axes: Any = (('seeds', [0]), ('sources', ['depth6']), ('views', []), ('images', [0]))
    domains = entry.get('domains', ['eurosat', 'aid'])
    others = LABELED if entry.get('transfer') is True else entry.get('transfer', ())
    chosen = (entry.get(key, default) for key, default in axes)
    for seed, source, views, images, name, domain in product(*chosen, recipes, domains):
        yield Job(
            *(group, name, source, domain, recipes[name], views, seed, images),
            transfer=tuple(d for d in others if d != domain),
            variants=tuple(entry.get('variants', ADAPTED)),
            budgets=tuple(entry.get('budgets', ())),
            extras=tuple(entry.get('extras', ('label_free',))),
            **{k: entry[k] for k in ('save', 'tuned') if k in entry},
        )
