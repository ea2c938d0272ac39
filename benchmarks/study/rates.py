"""Learning rates for tuning: python -m benchmarks.study.rates DATA CACHE OUT.jsonl."""

import sys
from pathlib import Path

import torch

from ..tables import records
from .running import Study
from .tuning import tune


def choose_rate(data: Path, cached: Path, out: Path, domains: tuple[str, ...] = ('eurosat', 'aid')) -> None:
    """Tune the unchanged source at several rates and record accuracy on held-out images of the archive."""
    study = Study(data, cached, out, torch.device('cuda' if torch.cuda.is_available() else 'cpu'))
    for name in domains:
        reading, domain = study.of_source('vit_ti16', name), study.domain(name)
        budget, found = (216, {}) if name == 'eurosat' else (25, {})
        for rate in (1e-3, 3e-3, 1e-2):
            hits = tune(reading.vit, reading.read, domain, budget, 0, rate, domain.val)
            found[rate] = round(float(hits.float().mean()), 4)
        records.append(
            out, {'group': 'tuning', 'key': f'tuning.{name}', 'budget': budget, 'validated': found}
        )


if __name__ == '__main__':
    torch.set_num_threads(1)
    data, cached, out = map(Path, sys.argv[1:4])
    choose_rate(data, cached, out)
