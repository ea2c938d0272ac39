from explora_geo.demo.report import verdict


def row(name: str, mean: float, half: float) -> dict[str, object]:
    return {'measurement': name, 'gain': {'mean': mean, 'half': half}}


def test_only_gains_outside_their_interval_count() -> None:
    text = verdict([row('probe', 0.03, 0.01), row('k-NN', 0.01, 0.02), row('tuning', -0.05, 0.04)])
    assert 'better: probe (+3.0 ± 1.0)' in text
    assert 'not told apart: k-NN (+1.0 ± 2.0)' in text
    assert 'worse: tuning (-5.0 ± 4.0)' in text
