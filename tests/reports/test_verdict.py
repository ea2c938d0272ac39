"""What a report says first."""

from typing import Any

import pytest

from explora_geo.reports import judge

from .conftest import row

MINUS = '\N{MINUS SIGN}'


def scored(*rows: dict[str, Any]) -> dict[str, Any]:
    return {'scores': {'rows': list(rows)}}


@pytest.mark.parametrize(
    ('gains', 'outcome', 'text', 'advice'),
    [
        ((0.05, 0.03), 'helps', 'Adapting helps: k-NN +5.0, linear probe +3.0 points.', 'Use the adapted'),
        ((0.05, 0.0), 'helps', 'helps: k-NN +5.0 points; linear probe within chance.', 'Use the adapted'),
        ((0.01, -0.01), 'no difference', 'makes no difference that can be told', 'Keep the source'),
        ((-0.05, 0.0), 'harm', f'Adapting does harm: k-NN {MINUS}5.0 points.', 'Keep the source'),
        ((0.05, -0.03), 'mixed', f'and harms: k-NN +5.0, linear probe {MINUS}3.0', 'for linear probe, keep'),
    ],
)
def test_paired_intervals_decide(gains: tuple[float, float], outcome: str, text: str, advice: str) -> None:
    found = judge(scored(row('knn', 0.6, gains[0]), row('linear', 0.8, gains[1])))
    assert found.outcome == outcome and text in found.text and advice in found.advice


def test_a_free_rival_that_stands_higher_is_named() -> None:
    found = judge(scored(row('knn', 0.6, 0.016, 0.01), row('linear', 0.8, 0.016, 0.01)))
    assert found.outcome == 'helps'
    assert (
        'the source averaged over turns stands higher by k-NN and linear probe: add --turns 4' in found.advice
    )
    assert 'turns' not in judge(scored(row('knn', 0.6, 0.05))).advice


@pytest.mark.parametrize(
    ('after', 'hint'), [(0.5, 'a hint of a gain'), (0.3, 'a hint of a loss'), (0.401, 'no hint either way')]
)
def test_without_labels_the_label_free_score_is_a_hint(after: float, hint: str) -> None:
    scores = {'source': {'neighbor_agreement': 0.4}, 'adapted': {'neighbor_agreement': after}}
    found = judge({'label_free': {**scores, 'chosen': 'neighbor_agreement'}})
    assert found.outcome == 'unmeasured' and hint in found.text and '--labels' in found.advice
    assert found.text.startswith('Nobody knows yet whether adapting helped')


def test_drift_is_no_hint() -> None:
    scores = {'source': {'cka_drift': 0.0}, 'adapted': {'cka_drift': 0.5}, 'chosen': 'cka_drift'}
    assert 'no hint either way' in judge({'label_free': scores}).text


def test_nothing_measured_is_said() -> None:
    assert judge({}).text.endswith('there were no labels to measure it.')
    assert judge(scored({'metric': 'knn', 'source': {'mean': 0.5}})).outcome == 'unmeasured'


def test_a_given_verdict_is_kept() -> None:
    given = {'outcome': 'harm', 'text': 'No.', 'advice': 'Keep the source.'}
    assert judge({'verdict': given, **scored(row('knn', 0.6, 0.1))})._asdict() == given
