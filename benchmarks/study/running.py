"""Run jobs one after the other, several processes from one list, and keep a line of JSON of each."""

import fcntl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explora_geo.evaluation.label_free import compare_backbones
from explora_geo.models.vit import ViT
from explora_geo.models.whitening import whitening_matrix

from ..tables import records
from .adapting import SOURCES, Source, adapt, load_source, reader
from .domains import load
from .jobs import Job
from .scoring import Hits, features, gain, score

#: Images of the archive that label-free scores and whitening read.
SAMPLE, WHITEN = 384, 4000
#: Power of whitening, if any, and orientations that are averaged.
VARIANTS: dict[str, tuple[float | None, int]] = {
    **{'one': (None, 1), 'turns4': (None, 4), 'turns8': (None, 8)},
    **{'white0.5': (0.5, 1), 'white1': (1.0, 1), 'white1x4': (1.0, 4)},
}
_ADAPTED = 'one', 'turns4', 'white1', 'white1x4'


def _drawn(index: Tensor, count: int, seed: int) -> Tensor:
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:count]]


def _gains(before: Hits, after: Hits) -> list[list[float]]:
    return [gain(a, b) for a, b in zip(before, after, strict=True)]


class Study:
    """What jobs share in a process."""

    def __init__(self, data: Path, cached: Path, out: Path, device: torch.device) -> None:
        """Initialize a Study."""
        self.data, self.cached, self.out, self.device = data, cached, out, device
        self.domain = cache(lambda name: load(name, data, cached).to(device))
        self.source = cache(lambda name: load_source(self.named(name))[0].to(device).eval())
        self.before = cache(self.source_scores)

    def named(self, name: str) -> Source:
        """A source, whose weights lie beside the data where they are a file."""
        source = SOURCES[name]
        file = self.data / (source.weights or '')
        return replace(source, weights=str(file)) if file.is_file() else source

    def scores(self, vit: ViT, source: str, name: str, variants: Iterable[str]) -> dict[str, Hits]:
        """Hits on a domain by variant: keys of `VARIANTS`, or `block3`."""
        domain, found = self.domain(name), {}
        read = reader(self.named(source), domain)

        @cache
        def parts(turns: int, block: int) -> Sequence[Tensor]:
            known = (domain.train, domain.val, domain.test)
            return [features(vit, read, i, turns, block) for i in known]

        for variant in variants:
            power, turns = VARIANTS.get(variant, (None, 1))
            sets = parts(turns, -1 if variant in VARIANTS else int(variant.removeprefix('block')))
            if power is not None:
                sample = _drawn(domain.archive, WHITEN, 0).to(self.device)
                seen = features(vit, read, sample, turns)
                mean = seen.mean(0)
                matrix = whitening_matrix((seen - mean).T.cov(), power)
                sets = [(x - mean) @ matrix for x in sets]
            found[variant] = score(domain, *sets)
        return found

    def source_scores(self, source: str, name: str) -> dict[str, Hits]:
        """Hits of a source on a domain, computed once for all processes."""
        file = self.cached / f'source_{source}_{name}.pt'
        with open(file.with_suffix('.lock'), 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.is_file():
                vit = self.source(source)
                blocks = [f'block{i}' for i in range(vit.depth)] if name in ('eurosat', 'aid') else []
                found = self.scores(vit, source, name, (*VARIANTS, *blocks))
                torch.save({k: tuple(h.cpu() for h in v) for k, v in found.items()}, file)
                means = {k: v.means for k, v in found.items()}
                records.append(self.out, {'group': 'source', 'key': f'{source}.{name}', 'scores': means})
        held = torch.load(file, map_location=self.device, weights_only=True)
        return {k: Hits(*v) for k, v in held.items()}

    def run(self, job: Job) -> dict[str, Any]:
        """Adapt and score."""
        start = time.time()
        domain, held, source = self.domain(job.domain), self.named(job.source), self.source(job.source)
        archive = domain.archive.cpu()
        archive = _drawn(archive, job.images, 1) if job.images else archive
        file = self.out.parent / f'{job.key}.safetensors' if job.save else None
        recipe = job.recipe(len(archive), held.size, source.patch_embed.patch_size)
        vit, numbers = adapt(held, recipe, domain, archive, job.seed, file)
        trained = time.time() - start
        before = self.before(job.source, job.domain)
        after = self.scores(vit, job.source, job.domain, _ADAPTED)
        row: dict[str, Any] = {
            **{k: getattr(job, k) for k in 'group key name source domain views seed images'.split()},
            'recipe': dict(job.values),
            **numbers,
            'before': before['one'].means,
            'after': {k: v.means for k, v in after.items()},
            'gain': {k: _gains(before['one'], v) for k, v in after.items()},
            'over_turns4': _gains(before['turns4'], after['one']),
            'train_seconds': round(trained, 1),
        }
        for other in job.transfer:
            first = self.before(job.source, other)['one']
            second = self.scores(vit, job.source, other, ['one'])['one']
            told = {'before': first.means, 'after': second.means, 'gain': _gains(first, second)}
            row.setdefault('transfer', {})[other] = told
        rows = _drawn(archive, SAMPLE, 2).to(self.device)
        images = reader(held, domain)(rows)
        row['label_free'] = {
            side: {k: round(v, 5) for k, v in told.items()}
            for side, told in compare_backbones(source, vit, images, batch_size=256).items()
        }
        return {**row, 'seconds': round(time.time() - start, 1)}


def work(study: Study, jobs: list[Job], until: float, say: Callable[[str], None] = print) -> None:
    """Do what no other process has begun, until the time is over."""
    claims = study.cached / 'claims'
    claims.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if time.time() > until:
            break
        with open(claims / job.key, 'w') as claim:
            try:  # a lock ends with its process, a file would outlive one that was killed
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if job.key not in {row['key'] for row in records.read(study.out)}:
                _do(study, job, say)


def _do(study: Study, job: Job, say: Callable[[str], None]) -> None:
    try:
        row = study.run(job)
    except Exception as error:  # one recipe that fails must not end the others
        records.append(study.out, {'group': 'failed', 'key': job.key, 'error': repr(error)[:300]})
        say(f'{job.key}: {error!r}')
        return
    records.append(study.out, row)
    first, last = row['before'], row['after']['one']
    say(f'{job.key}: {first} -> {last} in {row["train_seconds"]} of {row["seconds"]} s')


def take_part(rank: int, data: Path, cached: Path, out: Path, jobs: list[Job], until: float) -> None:
    """Work as one of several processes; see `work` and `Study`."""
    torch.set_num_threads(1)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    work(Study(data, cached, out, device), jobs, until)
