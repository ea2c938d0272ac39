"""Run jobs sequentially, shared by several processes, and write one JSON line each."""

import fcntl
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation.blocks import analyze_blocks
from explora_geo.evaluation.label_free import compare_backbones
from explora_geo.models.readout import whitening_matrix
from explora_geo.models.vit import ViT

from ..tables import records
from ..tables.recipe import OBJECTIVES
from .adapting import SOURCES, Source, adapt, load_source, reader
from .attention import attention_hits
from .domains import Domain, load
from .jobs import FOUR, VARIANTS, Job
from .scoring import Hits, budget_hits, features, gain, patches, score, validate
from .tuning import tune

#: Number of archive images read by label-free scores and by whitening.
SAMPLE, WHITEN = 384, 4000


def _drawn(index: Tensor, count: int, seed: int) -> Tensor:
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:count]]


def _gains(before: Hits, after: Hits) -> list[list[float]]:
    return [gain(a, b) for a, b in zip(before, after, strict=True)]


class Reading:
    """Features of a model on a domain, each computed once."""

    def __init__(self, vit: ViT, source: Source, domain: Domain) -> None:
        """Initialize a Reading."""
        self.vit, self.source, self.domain = vit, source, domain
        self.read = reader(source, domain)
        self.features = cache(self._features)

    def _features(self, part: str, turns: int = 1, block: int = -1) -> Tensor:
        return features(self.vit, self.read, getattr(self.domain, part), turns, block)

    def rows(self, index: Tensor) -> Tensor:
        """Return the features of images by index."""
        return features(self.vit, self.read, index)

    def parts(self, turns: int = 1, block: int = -1) -> list[Tensor]:
        """Return the features of the train, validation and test parts."""
        return [self.features(part, turns, block) for part in ('train', 'val', 'test')]

    def scores(self, variant: str) -> Hits:
        """Return hits of a variant: a key of `VARIANTS`, `block<i>`, or `FOUR`."""
        power, turns = VARIANTS.get(variant, (None, 1))
        if variant == FOUR:
            blocks = [self.parts(block=b) for b in range(-4, 0)]
            sets = [torch.cat(found, 1) for found in zip(*blocks, strict=True)]
        else:
            sets = self.parts(turns, -1 if variant in VARIANTS else int(variant.removeprefix('block')))
        if power is not None:
            drawn = _drawn(torch.arange(len(self.domain.archive)), WHITEN, 0)
            seen = features(self.vit, self.read, self.domain.archive[drawn], turns)
            mean = seen.mean(0)
            matrix = whitening_matrix((seen - mean).T.cov(), power)
            sets = [(x - mean) @ matrix for x in sets]
        return score(self.domain, *sets)

    def labeled(self, budget: int) -> Tensor:
        """Return a linear probe's mean hits over draws of *budget* labels per class (0: all), shape (M,)."""
        _, val, test = self.parts()
        return budget_hits(self.domain, self.features('archive'), val, test, budget)

    def attended(self) -> Tensor:
        """Return hits of a probe that attends to patches, shape (M,)."""
        domain = self.domain
        rows = [domain.train, domain.val, domain.test]
        parts = [patches(self.vit, self.read, i) for i in rows]
        return attention_hits(parts, [domain.label[i] for i in rows])

    def blocks(self) -> list[list[float]]:
        """Run the paper's analysis of every block, with 200 images to fit and 200 to test."""
        batches = []
        for index in (self.domain.train, self.domain.test):
            rows = _drawn(index.cpu(), 200, 0).to(index.device)
            batches.append([{'image': self.read(i), 'label': self.domain.label[i]} for i in rows.split(50)])
        fit, test = batches
        return [[round(float(x), 4) for x in row] for row in analyze_blocks(self.vit, fit, test)]

    def tuned(self, budget: int, seed: int) -> Tensor:
        """Return hits after LoRA-r8 tuning with *budget* labels per class, shape (M,)."""
        return tune(self.vit, self.read, self.domain, budget, seed)


class Study:
    """State shared by the jobs of a process."""

    def __init__(self, data: Path, cached: Path, out: Path, device: torch.device) -> None:
        """Initialize a Study."""
        self.data, self.cached, self.out, self.device = data, cached, out, device
        self.domain = cache(lambda name: load(name, data, cached).to(device))
        self.source = cache(lambda name: load_source(self.named(name))[0].to(device).eval())
        self.of_source = cache(
            lambda source, name: Reading(self.source(source), self.named(source), self.domain(name))
        )

    def named(self, name: str) -> Source:
        """Return a source; weight files are located beside the data."""
        source = SOURCES[name]
        file = self.data / (source.weights or '')
        return replace(source, weights=str(file)) if file.is_file() else source

    def before(self, source: str, name: str, what: str, *arguments: Any) -> Any:
        """Return the result of a `Reading` method for the source, computed once for all processes."""
        source = SOURCES[source].beside or source
        key = '_'.join(map(str, (source, name, what, *arguments)))
        file = self.cached / 'sources' / f'{key}.pt'
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_suffix('.lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.is_file():
                found = getattr(self.of_source(source, name), what)(*arguments)
                with atomic_path(file) as part:
                    torch.save(tuple(found) if isinstance(found, Hits) else found, part)
        held = torch.load(file, map_location=self.device, weights_only=True)
        return Hits(*held) if isinstance(held, tuple) else held

    def adapted(self, job: Job) -> tuple[ViT, dict[str, Any]]:
        """Return a job's model and the statistics of its run, from the cache if available."""
        domain, held = self.domain(job.domain), self.named(job.source)
        if not job.views:
            return self.source(job.source), {}
        archive = domain.archive.cpu()
        archive = _drawn(archive, job.images, 1) if job.images else archive
        file = self.cached / 'models' / f'{job.model}.pt'
        patch = self.source(job.source).patch_embed.patch_size
        recipe = job.recipe(len(archive), held.size, patch)
        if file.is_file():
            content = torch.load(file, map_location=self.device, weights_only=True)
            options = OBJECTIVES[recipe.objective].backbone_options
            vit = load_source(replace(held, weights=None), **options)[0]
            vit.mask_token = None
            vit.load_state_dict(content['state'])
            return vit.to(self.device).eval(), content['numbers']
        start = time.time()
        adapter = self.out.parent / f'{job.key}.safetensors' if job.save else None
        kept = file.with_suffix('.kept')
        vit, numbers = adapt(held, recipe, domain, archive, job.seed, adapter, kept)
        numbers['train_seconds'] = round(time.time() - start, 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as part:
            torch.save({'state': vit.state_dict(), 'numbers': numbers}, part)
        kept.unlink(missing_ok=True)
        return vit, numbers

    def run(self, job: Job) -> dict[str, Any]:
        """Adapt and score."""
        start = time.time()
        domain, held = self.domain(job.domain), self.named(job.source)
        vit, numbers = self.adapted(job)
        reading = Reading(vit, held, domain)
        before = self.before(job.source, job.domain, 'scores', 'one')
        after = {k: reading.scores(k) for k in job.variants}
        row: dict[str, Any] = {
            **{k: getattr(job, k) for k in 'group key name source domain views seed images'.split()},
            'recipe': dict(job.values),
            **numbers,
            'before': before.means,
            'after': {k: v.means for k, v in after.items()},
            'gain': {k: _gains(before, v) for k, v in after.items()},
            'validated': validate(domain, reading.rows, *reading.parts()[:2]),
        }
        for budget in job.budgets:
            row.setdefault('labels', {})[budget] = self._labels(job, reading, budget)
        for other in job.transfer:
            first = self.before(job.source, other, 'scores', 'one')
            second = Reading(vit, held, self.domain(other)).scores('one')
            told = {'before': first.means, 'after': second.means, 'gain': _gains(first, second)}
            row.setdefault('transfer', {})[other] = told
        if 'attention' in job.extras:
            row['attention'] = self._pair(job, reading, 'attended')
        if 'blocks' in job.extras:
            row['blocks'] = reading.blocks()
        if 'label_free' in job.extras:
            images = reading.read(_drawn(domain.archive.cpu(), SAMPLE, 2).to(self.device))
            row['label_free'] = {
                side: {k: round(v, 5) for k, v in told.items()}
                for side, told in compare_backbones(
                    self.source(job.source), vit, images, batch_size=256
                ).items()
            }
        return {**row, 'seconds': round(time.time() - start, 1)}

    def _labels(self, job: Job, reading: Reading, budget: int) -> dict[str, Any]:
        """Score by linear probe and by tuning; see `_pair`."""
        found = {'linear': self._pair(job, reading, 'labeled', budget)}
        if job.tuned:
            found['tuned'] = self._pair(job, reading, 'tuned', budget, job.seed)
        return found

    def _pair(self, job: Job, reading: Reading, what: str, *arguments: int) -> list[float]:
        """Return accuracy before and after, gain, and its interval half-width by a method of `Reading`."""
        first: Tensor = self.before(job.source, job.domain, what, *arguments)
        second: Tensor = getattr(reading, what)(*arguments) if job.views else first
        return [*(round(float(h.float().mean()), 5) for h in (first, second)), *gain(first, second)]


def work(study: Study, jobs: list[Job], until: float, say: Callable[[str], None] = print) -> None:
    """Run the jobs that no other process has claimed, until time runs out."""
    claims = study.cached / 'claims'
    claims.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if time.time() > until:
            break
        with open(claims / job.key, 'w') as claim:
            try:  # a lock ends with its process; a file would outlive a killed one
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if job.key not in {row['key'] for row in records.read(study.out)}:
                _do(study, job, say)


def _do(study: Study, job: Job, say: Callable[[str], None]) -> None:
    try:
        row = study.run(job)
    except Exception as error:  # a failing recipe must not stop the others
        records.append(study.out, {'group': 'failed', 'key': job.key, 'error': repr(error)[:300]})
        say(f'{job.key}: {error!r}')
        return
    records.append(study.out, row)
    first, last = row['before'], row['after']['one']
    say(f'{job.key}: {first} -> {last} in {row.get("train_seconds", 0)} and {row["seconds"]} s')


def take_part(rank: int, data: Path, cached: Path, out: Path, jobs: list[Job], until: float) -> None:
    """Work as one of several processes; see `work` and `Study`."""
    torch.set_num_threads(1)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    work(Study(data, cached, out, device), jobs, until)
