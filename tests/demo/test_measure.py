import pytest

from explora_geo.demo.measure import Protocol, Score, compare


def test_the_gain_is_paired_by_seed() -> None:
    # Seeds differ by far more than the models do; only pairing shows the constant gain.
    before = Score(linear=[0.2, 0.5, 0.8], knn=[0.5, 0.5, 0.5])
    after = Score(linear=[0.3, 0.6, 0.9], knn=[0.4, 0.5, 0.6])
    rows = {r['measurement'].split(',')[0]: r for r in compare(before, after, Protocol())}
    assert rows['linear probe']['gain']['mean'] == pytest.approx(0.1)
    assert rows['linear probe']['gain']['half'] == pytest.approx(0, abs=1e-9)
    assert rows['linear probe']['before']['half'] > 0.5
    # Student's t with 2 degrees of freedom: 4.303 * 0.1 / sqrt(3)
    assert rows['k-NN']['gain']['half'] == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)


def test_what_was_not_measured_has_no_row() -> None:
    rows = compare(Score(linear=[0.1, 0.2]), Score(linear=[0.1, 0.2]), Protocol())
    assert [r['measurement'] for r in rows] == ['linear probe, 25 labels a class']
