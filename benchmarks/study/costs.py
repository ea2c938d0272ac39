"""Cost of a training step of the ViT-Ti/16: python -m benchmarks.study.costs DATA CACHE OUT.jsonl."""

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..tables import records
from ..tables.meter import Meter
from .adapting import adapt
from .jobs import Job, read_groups
from .running import Study

STEPS = 10  # timed steps


def measure(data: Path, cached: Path, job: Job) -> dict[str, Any]:
    """Measure operations, memory and single-core time of a step by running steps in this process."""
    study = Study(data, cached, Path(), torch.device('cpu'))
    domain, held = study.domain(job.domain), study.named(job.source)
    archive = domain.archive[: job.images or None]
    recipe = job.recipe(len(archive), held.size, study.source(job.source).patch_embed.patch_size)

    def run(steps: int) -> float:
        start = time.process_time()  # excludes other processes of the machine
        adapt(held, replace(recipe, steps=steps), domain, archive, 0)
        return time.process_time() - start

    with Meter() as meter:
        run(2)
    with FlopCounterMode(display=False) as counter:
        run(1)
    once, often = run(1), run(1 + STEPS)
    numbers = {'gflop': counter.get_total_flops() / 1e9, 'gb': meter.peak_memory / 1e9}
    numbers['seconds'] = (often - once) / STEPS
    return {'name': job.name, 'batch': recipe.batch_size, **{k: round(v, 3) for k, v in numbers.items()}}


def main(data: Path, cached: Path, out: Path) -> None:
    """Measure each row missing from the file, in a separate process."""
    groups = read_groups()
    known = [job for name in ('headline', 'm-headline', 'rivals') for job in groups[name]]
    jobs = {j.name: j for j in known if j.domain == 'eurosat' and j.source == 'vit_ti16' and j.views}
    done = {row['name'] for row in records.read(out)}
    # glibc: return freed tensors to the system instead of keeping them as gaps in the process
    with patch.dict('os.environ', MALLOC_MMAP_THRESHOLD_=str(128 * 1024), OMP_NUM_THREADS='1'):
        for job in (job for name, job in jobs.items() if name not in done):
            context = multiprocessing.get_context('spawn')
            with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as pool:
                records.append(out, pool.submit(measure, data, cached, job).result())


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:4]))
