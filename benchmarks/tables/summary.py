"""Numbers over seeds and draws of labels, and what they say of the paper's findings."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from .records import Record, by_row
from .rows import Finding, Table

#: Points that a row may lie below another and still count as not below it.
MARGIN = 1.0
#: Share of findings of a table, none of which is true, that may be called one way or the other.
_LEVEL = 0.05
#: Verdict on rows that ran in different precisions.
MIXED = 'other precisions: not compared'


class Spread(NamedTuple):
    """Mean over seeds and draws of labels."""

    mean: float  # the mean
    error: float | None  # its standard error; None of one seed, or one configuration without draws
    freedom: float = 0.0  # degrees of freedom of the error
    seeds: int = 1  # number of seeds
    draws: int = 1  # draws of labels in each
    single: bool = False  # all seeds are one configuration, as of a source that nothing trains

    @property
    def half(self) -> float | None:
        """Half width of the 95 % interval (Student's t); None without an error."""
        return None if self.error is None else float(stats.t.ppf(0.975, self.freedom) * self.error)

    def text(self, sign: str = '') -> str:
        """Mean and interval, to one decimal; to more where both are small, as kilograms are."""
        half = self.half
        small = 0 < abs(self.mean) < 0.1 and (half or 0) < 0.05
        found = f'{self.mean:{sign}.3g}' if small else f'{self.mean:{sign}.1f}'
        if half is not None:
            found += f' ± {half:.2g}' if small else f' ± {half:.1f}' if half >= 0.05 else ' ± <0.1'
        if self.single:
            found += f' (one configuration{f", {self.draws} draws" if self.draws > 1 else ""})'
        return found

    def p_value(self, reference: float) -> float:
        """Two-sided probability of a mean this far from a reference (Student's t); there must be an error."""
        assert self.error is not None
        distance = abs(self.mean - reference)
        if self.error == 0:
            return float(distance == 0)
        return float(2 * stats.t.sf(distance / self.error, self.freedom))


def text_of(found: Spread | None, sign: str = '') -> str:
    """The text of a spread, or a dash."""
    return '-' if found is None else found.text(sign)


#: Names of the probes.
_METHODS = {'linear': 'linear sweep', 'logistic': 'linear probe', 'knn': 'k-NN'}


def score_title(score: str) -> str:
    """How a score such as `knn, 25` is called."""
    method, _, budget = score.partition(', ')
    number = f'{budget} labels a class' if budget.isdigit() else f'{budget} labels'
    return f'{_METHODS.get(method, method)}, {number}'


def spread(values: Sequence[Sequence[float]], single: bool | None = None) -> Spread:
    """Mean and error of values by seed and draw of labels.

    Draws are the same for all seeds, so that seeds and draws each add the variance of their own means
    (Welch and Satterthwaite's degrees of freedom). Equal seeds are a single configuration by default.
    """
    draws = min(map(len, values))
    table = np.array([row[:draws] for row in values])
    seeds = len(table)
    if single is None:
        single = seeds > 1 and bool((table == table[0]).all())
    parts = []
    if seeds > 1 and not single:
        parts.append((table.mean(1).var(ddof=1) / seeds, seeds - 1))
    if draws > 1 and seeds > 1:  # how far seeds lie apart is not known of one
        parts.append((table.mean(0).var(ddof=1) / draws, draws - 1))
    error, freedom = None, 0.0
    if parts:
        variance = sum(v for v, _ in parts)
        below = sum(v**2 / n for v, n in parts)
        error, freedom = float(variance**0.5), float(variance**2 / below if below else parts[0][1])
    return Spread(float(table.mean()), error, freedom, seeds, draws, single)


def _values(record: Record, key: str) -> list[float]:
    """One value per draw of labels of a record's value or one of its scores; none where it lacks."""
    score = record['value'] if key == 'value' else record['scores'].get(key)
    if score is None:  # also of the table of carbon, for want of a meter
        return []
    for detail in record.get('details') or ():
        named = f'{detail["method"]}, {detail["budget"]}' == key
        if named or (key == 'value' and 100 * detail['mean'] == score):
            return [100 * accuracy for accuracy in detail['accuracies']]
    return [score]


def summarise(records: Sequence[Record], key: str = 'value') -> Spread | None:
    """Mean and error of a row; None if it lacks the score."""
    values = [found for r in records if (found := _values(r, key))]
    return spread(values) if values else None


def paired(better: Sequence[Record], worse: Sequence[Record], key: str = 'value') -> Spread | None:
    """Differences of two rows by seed and draw, in `value` or a score; None without a common seed."""
    one, two = ({r['seed']: v for r in rows if (v := _values(r, key))} for rows in (better, worse))
    seeds = sorted(one.keys() & two.keys())
    if not seeds:
        return None
    single = len(seeds) > 1 and all(part[seed] == part[seeds[0]] for part in (one, two) for seed in seeds)
    return spread([[a - b for a, b in zip(one[s], two[s], strict=False)] for s in seeds], single)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being the smallest, second smallest, ... of several (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def judge(finding: Finding, difference: Spread | None, p_value: float | None = None) -> str:
    """Whether a difference, with its adjusted p-value, bears a finding out, or why that is unknown."""
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
    """Every finding with its difference and verdict, p-values adjusted over those that ran (Holm)."""
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
