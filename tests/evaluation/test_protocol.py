"""Methods, budgets and seeds together, and reports of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from explora_geo.evaluation import FeatureTable, ProbeProtocol, SweepConfig, run_probes
from explora_geo.evaluation.probes import Budget
from explora_geo.evaluation.protocol import describe_absent, describe_source, write_reports
from explora_geo.models import ViT

Table = Callable[..., FeatureTable]
SHORT = SweepConfig(epochs=1, iterations=30)


def protocol(**kwargs: object) -> ProbeProtocol:
    budgets = (Budget.parse('2'), Budget.parse('all'))
    return ProbeProtocol(**{'budgets': budgets, 'seeds': 3, 'sweep': SHORT, 'few_iterations': 20, **kwargs})  # type: ignore[arg-type]


def parts(*tables: FeatureTable) -> dict[str, FeatureTable]:
    return dict(zip(('train', 'val', 'test'), tables, strict=True))


def test_every_method_is_scored_with_every_budget_over_seeds(table: Table) -> None:
    outcome = run_probes(parts(table(60, 0, 6), table(30, 1, 6), table(90, 2, 6)), protocol())
    assert [(s.method, str(s.budget), s.labels, len(s.accuracies)) for s in outcome.scores] == [
        ('linear', '2', 6, 3),
        ('logistic', '2', 6, 3),
        ('knn', '2', 6, 3),
        ('linear', 'all', 60, 1),
        ('logistic', 'all', 60, 1),
        ('knn', 'all', 60, 1),
    ]
    assert len(outcome.sweep) == 28
    assert all(s.mean > 0.9 for s in outcome.scores[3:])
    assert all(s.interval[0] <= s.mean <= s.interval[1] for s in outcome.scores)
    # The other token kind is noise here: validation must leave it.
    assert all('cls' in setting for s in outcome.scores for setting in s.settings)


def test_one_class_is_refused(table: Table) -> None:
    with pytest.raises(ValueError, match='at least two classes, but the training images have 1'):
        run_probes(parts(table(9, 0, classes=1), table(9, 1), table(9, 2)), protocol())


def test_images_of_a_class_without_training_images_count_as_wrong_and_are_reported(table: Table) -> None:
    names = ('crop', 'forest', 'river')
    train, test = table(60, 0, 9, classes=2), table(90, 2, 9)
    outcome = run_probes(parts(train, table(30, 1, 9), test), protocol(), names)
    known = test.take((test.label < 2).nonzero().flatten())
    alone = run_probes(parts(train, table(30, 1, 9), known), protocol(), names)
    # Two thirds of the test images have a class that training has.
    for score, other in zip(outcome.scores, alone.scores, strict=True):
        assert score.mean == pytest.approx(2 / 3 * other.mean) and other.mean > 0.7
    assert outcome.absent == {'river': {'validation': 10, 'test': 30}}
    assert describe_absent(outcome.absent) == (
        'Classes without training images, whose images count as wrong: river (10 validation and 30 test).'
    )
    assert alone.absent == {'river': {'validation': 10}} and describe_absent({}) == ''


def test_labels_with_gaps_are_probed_as_others(table: Table) -> None:
    dense = [table(60, 0, 6), table(30, 1, 6), table(90, 2, 6)]
    wide = [t._replace(label=t.label * 90 + 1) for t in dense]
    scores = [[s.mean for s in run_probes(parts(*p), protocol()).scores] for p in (dense, wide)]
    assert scores[0] == scores[1]


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match='methods must be among linear, logistic, knn, got svm'):
        protocol(methods=('svm',))
    with pytest.raises(ValueError, match='seeds must be at least 1'):
        protocol(seeds=0)


def test_reports_hold_what_was_measured_and_of_what(
    table: Table, build_vit: Callable[..., ViT], tmp_path: Path
) -> None:
    plan = protocol(budgets=(Budget.parse('10%'), Budget()), seeds=2)
    train = table(60, 0)._replace(skipped=('a.jpg: torn',))
    outcome = run_probes(parts(train, table(30, 1), table(30, 2)), plan)
    about = describe_source(build_vit(), 'tiles', 'w.pth', tmp_path / 'adapter.safetensors', turns=4)
    files = write_reports(tmp_path, outcome, about)
    content, text = json.loads(files[0].read_text()), files[1].read_text()
    assert [len(content['scores']), len(content['sweep'])] == [6, 28]
    assert (content['protocol']['steps'], content['protocol']['steps_few_labels']) == (30, 20)
    assert (content['weights'], content['turns'], content['bands']) == ('w.pth', 4, ['red', 'green', 'blue'])
    first = content['scores'][0]
    assert first['accuracies'] == outcome.scores[0].accuracies and first['mean'] == outcome.scores[0].mean
    assert content['skipped'] == ['a.jpg: torn'] and content['images'] == {'train': 60, 'val': 30, 'test': 30}
    assert f'{100 * first["mean"]:.2f}' in text and 'a.jpg: torn' in text
    assert text.startswith(f'# Frozen features of {about["backbone"]} + adapter.safetensors on tiles\n')
    assert describe_source(build_vit(), 'tiles', 'w.pth', name='mine')['name'] == 'mine'
