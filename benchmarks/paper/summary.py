"""Numbers over seeds, and what they say of the paper's findings."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from explora_geo.evaluation import mean_interval

from .records import Record, by_row
from .rows import Finding, Table


class Spread(NamedTuple):
    """Mean over seeds.

    Attributes:
        mean: The mean.
        half: Half width of its 95 % interval (Student's t); None for a single seed.
        seeds: Number of seeds.
    """

    mean: float
    half: float | None
    seeds: int

    def text(self, sign: str = '') -> str:
        """Mean and interval, to one decimal; to more where both are small, as kilograms are."""
        small = 0 < abs(self.mean) < 0.1 and (self.half or 0) < 0.05
        form = f'{sign}.3g' if small else f'{sign}.1f'
        half = '' if self.half is None else f' ± {self.half:{".2g" if small else ".1f"}}'
        return f'{self.mean:{form}}{half}'


#: Names of the probes.
_METHODS = {'linear': 'linear sweep', 'logistic': 'linear probe', 'knn': 'k-NN'}


def score_title(score: str) -> str:
    """How a score such as `knn, 25` is called."""
    method, _, budget = score.partition(', ')
    number = f'{budget} labels a class' if budget.isdigit() else f'{budget} labels'
    return f'{_METHODS.get(method, method)}, {number}'


def spread(values: Sequence[float]) -> Spread:
    """Mean and interval of one value per seed."""
    if len(values) < 2:
        return Spread(values[0], None, 1)
    return Spread(*mean_interval(values), len(values))


def paired(better: Sequence[Record], worse: Sequence[Record], key: str = 'value') -> Spread | None:
    """Differences by seed; None if there is no seed that both ran.

    Args:
        better: Records of one row.
        worse: Records of another.
        key: `value`, or one of their scores.
    """

    def by_seed(records: Sequence[Record]) -> Mapping[int, float]:
        return {
            r['seed']: r['value'] if key == 'value' else r['scores'][key]
            for r in records
            if key == 'value' or key in r['scores']
        }

    one, two = by_seed(better), by_seed(worse)
    seeds = sorted(one.keys() & two.keys())
    return spread([one[s] - two[s] for s in seeds]) if seeds else None


def judge(finding: Finding, difference: Spread | None) -> str:
    """Whether a difference bears a finding out.

    A single seed tells nothing apart.

    Args:
        finding: The statement.
        difference: Paired difference of its two rows, or None if one did not run.

    Returns:
        `holds`, `does not hold`, `not told apart` or `not run`.
    """
    if difference is None:
        return 'not run'
    if difference.half is None:
        return 'one seed: not told apart'
    if finding.equal and difference.mean >= 0:  # not below
        return 'holds'
    if abs(difference.mean) <= difference.half:
        return 'not told apart'
    return 'holds' if difference.mean > 0 else 'does not hold'


def judge_all(
    table: Table, records: Sequence[Record], key: str = 'value'
) -> list[tuple[Finding, Spread | None, str]]:
    """Every finding of a table with its difference and verdict.

    Of the table of carbon, where less is better, the row put above the other is the one that emits more.

    Args:
        table: The table.
        records: Its results.
        key: `value`, or one of their scores.
    """
    found = by_row(records, table.id)
    judged = []
    for finding in table.findings:
        better, worse = (found.get((name, 'run'), []) for name in (finding.better, finding.worse))
        difference = paired(better, worse, key)
        judged.append((finding, difference, judge(finding, difference)))
    return judged
