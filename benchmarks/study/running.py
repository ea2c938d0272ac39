"""Run jobs one after the other, several processes from one list, and keep a line of JSON of each."""

import fcntl
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explora_geo.evaluation.compare import interpolate
from explora_geo.evaluation.label_free import compare_backbones
from explora_geo.models.vit import ViT
from explora_geo.models.whitening import whitening_matrix

from .adapting import SOURCES, Recipe, Source, adapt, load_source, stats_of
from .domains import Domain, load
from .scoring import Hits, features, gain, prepare, score

#: Images of the archive that label-free scores and whitening read.
SAMPLE, WHITEN = 384, 4000


@dataclass(frozen=True)
class Job:
    """One adaptation and its scores.

    Attributes:
        group: What it is for.
        name: Name of the recipe.
        source: Key of `SOURCES`.
        domain: Domain that is adapted to.
        recipe: How.
        views: Images to see.
        seed: Of everything that is drawn.
        images: Adapt to so many images of the archive, all if 0.
        strengths: Also score so much of the difference.
        transfer: Also score the other domains.
        save: Keep the adapter.
    """

    group: str
    name: str
    source: str
    domain: str
    recipe: Recipe
    views: int
    seed: int = 0
    images: int = 0
    strengths: tuple[float, ...] = ()
    transfer: tuple[str, ...] = ()
    save: bool = False

    @property
    def key(self) -> str:
        """Name of the job."""
        images = f'-n{self.images}' if self.images else ''
        return f'{self.name}.{self.source}.{self.domain}.{self.views}{images}.{self.seed}'


@dataclass
class Study:
    """What jobs share in a process.

    Attributes:
        data: Folder of archives.
        cache: Folder of what was read of them, and of the scores of sources.
        out: File of lines.
        device: Where to compute.
    """

    data: Path
    cache: Path
    out: Path
    device: torch.device
    domains: dict[str, Domain] = field(default_factory=dict)
    sources: dict[str, ViT] = field(default_factory=dict)
    before: dict[tuple[str, str], dict[str, Hits]] = field(default_factory=dict)

    def held(self, name: str) -> Source:
        """A source, whose weights lie beside the data where they are a file."""
        source = SOURCES[name]
        file = self.data / (source.weights or '')
        return replace(source, weights=str(file)) if file.is_file() else source

    def domain(self, name: str) -> Domain:
        """A domain on the device."""
        if name not in self.domains:
            self.domains[name] = load(name, self.data, self.cache).to(self.device)
        return self.domains[name]

    def source(self, name: str) -> ViT:
        """A source on the device."""
        if name not in self.sources:
            self.sources[name] = load_source(self.held(name), self.device)
        return self.sources[name]

    def scores(self, vit: ViT, source: str, name: str, variants: Iterable[str]) -> dict[str, Hits]:
        """Hits on a domain by variant: `one`, `turns4`, `white0.5`, `white1`, `white1x4`, or `block3`."""
        domain, held = self.domain(name), self.held(source)
        stats = stats_of(held, self.device)
        parts = (domain.train, domain.val, domain.test)
        found, kept = {}, {}

        def sets(turns: int, block: int = -1) -> tuple[Tensor, ...]:
            if (turns, block) not in kept:
                kept[turns, block] = tuple(
                    features(vit, domain, i, held.size, stats, turns, block) for i in parts
                )
            return kept[turns, block]

        for variant in variants:
            if variant.startswith('white'):
                power, _, turns = variant.removeprefix('white').partition('x')
                sample = domain.archive[
                    torch.randperm(len(domain.archive), generator=torch.Generator().manual_seed(0))
                ]
                sample = sample[:WHITEN].to(self.device)
                seen = features(vit, domain, sample, held.size, stats, int(turns or 1))
                mean = seen.mean(0)
                matrix = whitening_matrix((seen - mean).T.cov(), float(power))
                found[variant] = score(domain, *((x - mean) @ matrix for x in sets(int(turns or 1))))
            elif variant.startswith('block'):
                found[variant] = score(domain, *sets(1, int(variant.removeprefix('block'))))
            else:
                found[variant] = score(
                    domain, *sets(int(variant.removeprefix('turns')) if variant != 'one' else 1)
                )
        return found

    def source_scores(self, source: str, name: str) -> dict[str, Hits]:
        """Hits of a source on a domain, computed once for all processes."""
        if (source, name) not in self.before:
            file = self.cache / f'source_{source}_{name}.pt'
            with open(file.with_suffix('.lock'), 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not file.is_file():
                    vit = self.source(source)
                    blocks = [f'block{i}' for i in range(vit.depth)] if name in ('eurosat', 'aid') else []
                    variants = ['one', 'turns4', 'turns8', 'white0.5', 'white1', 'white1x4', *blocks]
                    found = self.scores(vit, source, name, variants)
                    torch.save({k: tuple(h.cpu() for h in v) for k, v in found.items()}, file)
                    row = {
                        'group': 'source',
                        'key': f'{source}.{name}',
                        'scores': {k: v.means for k, v in found.items()},
                    }
                    append(self.out, row)
            held = torch.load(file, map_location=self.device, weights_only=True)
            self.before[source, name] = {k: Hits(*v) for k, v in held.items()}
        return self.before[source, name]

    def run(self, job: Job) -> dict[str, Any]:
        """Adapt and score."""
        start = time.time()
        domain, held = self.domain(job.domain), self.held(job.source)
        archive = domain.archive.cpu()
        if job.images:
            archive = archive[
                torch.randperm(len(archive), generator=torch.Generator().manual_seed(1))[: job.images]
            ]
        file = self.out.parent / f'{job.key}.safetensors' if job.save else None
        vit, numbers = adapt(held, job.recipe, domain, job.views, job.seed, archive, file)
        trained = time.time() - start
        before = self.source_scores(job.source, job.domain)
        after = self.scores(vit, job.source, job.domain, ['one', 'turns4', 'white1', 'white1x4'])
        row = {
            'group': job.group,
            'key': job.key,
            'name': job.name,
            'source': job.source,
            'domain': job.domain,
            'views': job.views,
            'seed': job.seed,
            'images': job.images,
            'recipe': job.recipe.to_dict(),
            **numbers,
            'before': before['one'].means,
            'after': {k: v.means for k, v in after.items()},
            'gain': {
                k: [gain(a, b) for a, b in zip(before['one'], v, strict=True)] for k, v in after.items()
            },
            'over_turns4': [gain(a, b) for a, b in zip(before['turns4'], after['one'], strict=True)],
            'train_seconds': round(trained, 1),
        }
        for strength in job.strengths:
            between = interpolate(self.source(job.source), vit, strength)
            found = self.scores(between, job.source, job.domain, ['one'])['one']
            row.setdefault('strengths', {})[str(strength)] = found.means
        for other in job.transfer:
            first, second = (
                self.source_scores(job.source, other)['one'],
                self.scores(vit, job.source, other, ['one'])['one'],
            )
            row.setdefault('transfer', {})[other] = {
                'before': first.means,
                'after': second.means,
                'gain': [gain(a, b) for a, b in zip(first, second, strict=True)],
            }
        rows = archive[torch.randperm(len(archive), generator=torch.Generator().manual_seed(2))[:SAMPLE]]
        images = prepare(domain.image[rows.to(self.device)], held.size, *stats_of(held, self.device))
        row['label_free'] = {
            side: {k: round(v, 5) for k, v in found.items()}
            for side, found in compare_backbones(self.source(job.source), vit, images, batch_size=256).items()
        }
        return {**row, 'seconds': round(time.time() - start, 1)}


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a line, whole, to a file that other processes write too."""
    with open(file, 'a') as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.write(json.dumps(row) + '\n')


def work(study: Study, jobs: list[Job], until: float, say: Callable[[str], None] = print) -> None:
    """Do what no other process has begun, until the time is over.

    Args:
        study: What jobs share.
        jobs: In the order of their worth.
        until: Start nothing after this time, seconds since 1970.
        say: Told what was done.
    """
    claims = study.cache / 'claims'
    claims.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if time.time() > until:
            break
        with open(claims / job.key, 'w') as claim:
            try:  # a lock ends with its process, a file would outlive one that was killed
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if job.key not in _done(study.out):
                _do(study, job, say)


def _done(out: Path) -> set[str]:
    lines = out.read_text(encoding='utf-8').splitlines() if out.is_file() else []
    return {json.loads(line)['key'] for line in lines}


def _do(study: Study, job: Job, say: Callable[[str], None]) -> None:
    try:
        row = study.run(job)
    except Exception as error:  # one recipe that fails must not end the others
        append(study.out, {'group': 'failed', 'key': job.key, 'error': repr(error)[:300]})
        say(f'{job.key}: {error!r}')
        return
    append(study.out, row)
    first, last = row['before'], row['after']['one']
    say(f'{job.key}: {first} -> {last} in {row["train_seconds"]} of {row["seconds"]} s')


def take_part(rank: int, data: Path, cache: Path, out: Path, jobs: list[Job], until: float) -> None:
    """Work as one of several processes; see `work` and `Study`."""
    torch.set_num_threads(1)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    work(Study(data, cache, out, device), jobs, until)
