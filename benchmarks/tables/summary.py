"""Statistics over seeds and label draws, and verdicts on the paper's findings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from .records import Record, by_row
from .rows import Finding, Table

#: Points by which a row may be lower than another and still count as not below it.
MARGIN = 1.0
#: Family-wise error rate over the findings of a table.
_LEVEL = 0.05
#: Verdict on rows with different precisions.
MIXED = 'other precisions: not compared'


class Spread(NamedTuple):
    """Mean over seeds and label draws."""

    mean: float  # the mean
    error: float | None  # its standard error; None for one seed, or one configuration without draws
    freedom: float = 0.0  # degrees of freedom of the error
    seeds: int = 1  # number of seeds
    draws: int = 1  # draws of labels per seed
    single: bool = False  # all seeds are one configuration, such as an untrained source

    @property
    def half(self) -> float | None:
        """Half-width of the 95 % interval (Student's t); None without an error."""
        return None if self.error is None else float(stats.t.ppf(0.975, self.freedom) * self.error)

    def text(self, sign: str = '') -> str:
        """Format mean and interval to one decimal, or more if both are small (kilograms, for example)."""
        half = self.half
        small = 0 < abs(self.mean) < 0.1 and (half or 0) < 0.05
        found = f'{self.mean:{sign}.3g}' if small else f'{self.mean:{sign}.1f}'
        if half is not None:
            found += f' ± {half:.2g}' if small else f' ± {half:.1f}' if half >= 0.05 else ' ± <0.1'
        if self.single:
            found += f' (one configuration{f", {self.draws} draws" if self.draws > 1 else ""})'
        return found

    def p_value(self, reference: float) -> float:
        """Return the two-sided p-value of the mean against a reference (Student's t); requires an error."""
        assert self.error is not None
        distance = abs(self.mean - reference)
        if self.error == 0:
            return float(distance == 0)
        return float(2 * stats.t.sf(distance / self.error, self.freedom))


def text_of(found: Spread | None, sign: str = '') -> str:
    """Format a spread, or return a dash."""
    return '-' if found is None else found.text(sign)


#: Names of the probes.
_METHODS = {'linear': 'linear sweep', 'logistic': 'linear probe', 'knn': 'k-NN'}


def score_title(score: str) -> str:
    """Return the title of a score such as `knn, 25`."""
    method, _, budget = score.partition(', ')
    number = f'{budget} labels a class' if budget.isdigit() else f'{budget} labels'
    return f'{_METHODS.get(method, method)}, {number}'


def welch(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the error of a sum and its degrees of freedom (Welch and Satterthwaite).

    `parts` holds the variance of each independent term and the degrees of freedom of that variance.
    """
    variance = sum(v for v, _ in parts)
    below = sum(v**2 / n for v, n in parts)
    return float(variance**0.5), float(variance**2 / below if below else parts[0][1])


def spread(values: Sequence[Sequence[float]], single: bool | None = None) -> Spread:
    """Compute mean and error of values by seed and label draw.

    All seeds share the same draws, so seeds and draws each contribute the variance of their own means. By
    default, equal seeds count as one configuration.
    """
    draws = min(map(len, values))
    table = np.array([row[:draws] for row in values])
    seeds = len(table)
    if single is None:
        single = seeds > 1 and bool((table == table[0]).all())
    parts = []
    if seeds > 1 and not single:
        parts.append((table.mean(1).var(ddof=1) / seeds, seeds - 1))
    if draws > 1 and seeds > 1:  # one seed says nothing about the variance between seeds
        parts.append((table.mean(0).var(ddof=1) / draws, draws - 1))
    error, freedom = welch(parts) if parts else (None, 0.0)
    return Spread(float(table.mean()), error, freedom, seeds, draws, single)


def _values(record: Record, key: str) -> list[float]:
    """Return a record's value or score, one number per label draw; empty if it is missing."""
    score = record['value'] if key == 'value' else record['scores'].get(key)
    if score is None:  # also the carbon table's without a meter
        return []
    for detail in record.get('details') or ():
        named = f'{detail["method"]}, {detail["budget"]}' == key
        if named or (key == 'value' and 100 * detail['mean'] == score):
            return [100 * accuracy for accuracy in detail['accuracies']]
    return [score]


def summarise(records: Sequence[Record], key: str = 'value') -> Spread | None:
    """Return mean and error of a row; None if it lacks the score."""
    values = [found for r in records if (found := _values(r, key))]
    return spread(values) if values else None


def paired(better: Sequence[Record], worse: Sequence[Record], key: str = 'value') -> Spread | None:
    """Compute paired differences in `value` or a score by seed and draw; None without a common seed."""
    one, two = ({r['seed']: v for r in rows if (v := _values(r, key))} for rows in (better, worse))
    seeds = sorted(one.keys() & two.keys())
    if not seeds:
        return None
    single = len(seeds) > 1 and all(part[seed] == part[seeds[0]] for part in (one, two) for seed in seeds)
    return spread([[a - b for a, b in zip(one[s], two[s], strict=False)] for s in seeds], single)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def judge(finding: Finding, difference: Spread | None, p_value: float | None = None) -> str:
    """Return whether a difference and its adjusted p-value confirm a finding, or why that is unknown."""
    if difference is None:
        return 'not run'
    if difference.error is None:
        return f'{"one configuration" if difference.single else "one seed"}: not told apart'
    reference = -MARGIN if finding.equal else 0.0
    if (difference.p_value(reference) if p_value is None else p_value) >= _LEVEL:
        return 'not told apart'
    return 'holds' if difference.mean > reference else 'does not hold'


def judge_all(
    table: Table, records: Sequence[Record], key: str = 'value'
) -> list[tuple[Finding, Spread | None, str]]:
    """Return every finding with its difference and verdict, p-values adjusted over those that ran (Holm)."""
    known, found = by_row(records, table.id), []
    for finding in table.findings:
        better, worse = (known.get(name, []) for name in (finding.better, finding.worse))
        mixed = len({r.get('precision') for r in (*better, *worse)} - {None}) > 1
        found.append((finding, paired(better, worse, key), mixed))
    tested = {
        f.text: d.p_value(-MARGIN if f.equal else 0.0)
        for f, d, mixed in found
        if d and d.error is not None and not mixed
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [(f, d, MIXED if mixed and d else judge(f, d, adjusted.get(f.text))) for f, d, mixed in found]
