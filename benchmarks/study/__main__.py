"""Run the study: python -m benchmarks.study DATA CACHE OUT.jsonl GROUP... [--seconds S] [--processes N]."""

import argparse
import time
from pathlib import Path

from torch.multiprocessing.spawn import spawn

from .jobs import read_groups
from .running import take_part

if __name__ == '__main__':
    groups = read_groups()
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ('data', 'cache', 'out'):
        parser.add_argument(name, type=Path)
    parser.add_argument('groups', nargs='+', choices=groups)
    parser.add_argument('--seconds', type=float, default=1e9, help='start nothing after these')
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--only', default='', help='only jobs whose key contains this text')
    given = parser.parse_args()
    jobs = [job for group in given.groups for job in groups[group] if given.only in job.key]
    arguments = (given.data, given.cache, given.out, jobs, time.time() + given.seconds)
    spawn(take_part, arguments, given.processes)
