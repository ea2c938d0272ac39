"""What a report says first."""

from typing import Any

import pytest

from explora_geo.evaluation.label_free import DEFAULT_SCORE
from explora_geo.reports import judge

from .conftest import row

MINUS = '\N{MINUS SIGN}'


def scored(*rows: dict[str, Any]) -> dict[str, Any]:
    return {'scores': {'rows': list(rows)}}


@pytest.mark.parametrize(
    ('gains', 'outcome', 'text', 'advice'),
    [
        ((0.05, 0.03), 'helps', 'Adapting helps: k-NN +5.0, linear probe +3.0 points.', 'Use the adapted'),
        ((0.05, 0.0), 'helps', 'helps: k-NN +5.0 points; linear probe within noise.', 'Use the adapted'),
        ((0.01, -0.01), 'no difference', 'makes no clear difference: k-NN +1.0', 'Keep the source'),
        ((-0.05, 0.0), 'harm', f'Adapting does harm: k-NN {MINUS}5.0 points.', 'Keep the source'),
        (
            (0.05, -0.03),
            'harm',
            f'does harm: linear probe {MINUS}3.0 points.',
            'It gains with k-NN; do not use it for',
        ),
    ],
)
def test_paired_gains_decide(gains: tuple[float, float], outcome: str, text: str, advice: str) -> None:
    found = judge(scored(row('knn', 0.6, gains[0]), row('linear', 0.8, gains[1])))
    assert found.outcome == outcome and text in found.text and advice in found.advice


def test_a_free_rival_that_stands_higher_is_named() -> None:
    found = judge(scored(row('knn', 0.6, 0.016, 0.01), row('linear', 0.8, 0.016, 0.01)))
    assert found.outcome == 'helps'
    assert (
        'the source averaged over turns scores higher with k-NN and linear probe (add --turns 4)'
        in found.advice
    )
    assert 'turns' not in judge(scored(row('knn', 0.6, 0.05))).advice


def test_few_labels_alone_do_not_make_a_gain() -> None:
    found = judge(scored(row('knn', 0.6, 0.0), {**row('few', 0.6, 0.05), 'title': '10 labels a class'}))
    assert found.outcome == 'no difference' and '10 labels a class +5.0' in found.text


@pytest.mark.parametrize(
    ('after', 'text', 'advice'),
    [
        (0.5, 'Signs of a gain, but no labels', 'from 0.4 to 0.5: a hint, not proof'),
        (0.3, 'Signs of harm, but no labels', 'from 0.4 to 0.3: a hint, not proof'),
        (0.401, 'No labels, so', 'no hint either way'),
    ],
)
def test_without_labels_the_label_free_score_is_a_hint(after: float, text: str, advice: str) -> None:
    found = judge({'label_free': {'source': {DEFAULT_SCORE: 0.4}, 'adapted': {DEFAULT_SCORE: after}}})
    assert found.outcome == 'unmeasured' and found.text.startswith(text)
    assert advice in found.advice and '--labels' in found.advice


def test_a_gain_without_an_interval_is_not_told_from_chance() -> None:
    assert judge(scored({'metric': 'knn', 'gain': {'mean': 0.05}})).outcome == 'no difference'
    assert judge(scored({'metric': 'knn', 'gain': {'mean': -0.05, 'low': None}})).outcome == 'harm'


def test_nothing_measured_is_said() -> None:
    assert judge({}).text == 'No labels, so it is unknown whether adapting helps.'
    assert judge(scored({'metric': 'knn', 'source': {'mean': 0.5}})).outcome == 'unmeasured'


def test_a_short_run_is_called_short_and_the_adapter_made_beforehand_is_judged() -> None:
    rows = [row('knn', 0.6, -0.05), row('linear', 0.8, 0.0)]
    for r, gain in zip(rows, (0.06, 0.05), strict=True):
        r['beside'] = {'mean': r['source']['mean'] + gain, 'gain': {'mean': gain, 'low': 0.02, 'high': 0.1}}
    found = judge({**scored(*rows), 'adaptation': {'short': True, 'steps': 24, 'strength': 1}})
    assert found.outcome == 'helps'
    assert found.text == 'The ready-made adapter helps: k-NN +6.0, linear probe +5.0 points.'
    assert found.advice.startswith(
        f'This run was short (24 steps) and only shows the workflow: k-NN {MINUS}5.0'
    )
