"""The study of short adaptations: its solver, its runs, and what the committed ones say."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.study import adapting, attention, costs, proof, running, spatial
from benchmarks.study.adapting import Source
from benchmarks.study.domains import Domain
from benchmarks.study.jobs import Job, read_groups
from benchmarks.study.report import combined, harm, label_free, main, pooled, read, where
from benchmarks.study.rivals import RIVALS
from benchmarks.study.scoring import draw_labels, gain, logistic, score
from explora_geo.evaluation.comparison import MARGIN
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES, WORTH
from explora_geo.models import builders

RESULTS = Path(__file__).parents[2] / 'benchmarks' / 'results' / 'study'


def test_logistic_regressions_are_those_of_scikit_learn() -> None:
    torch.manual_seed(0)
    centers, label = torch.randn(5, 24), torch.randint(0, 5, (300,))
    x = centers[label] + 2 * torch.randn(300, 24)
    x = (x - x.mean(0)) / x.std(0)
    penalties = (0.01, 0.3)
    for penalty, weight in zip(penalties, logistic(x, label, penalties, 5), strict=True):
        other = LogisticRegression(C=penalty, max_iter=1000, tol=1e-8).fit(x, label)
        mine = (x @ weight[:-1] + weight[-1]).softmax(1).numpy()
        np.testing.assert_allclose(mine, other.predict_proba(x), atol=2e-3)


def test_gains_are_paired() -> None:
    before, after = torch.tensor([1.0, 0, 0, 1]), torch.tensor([1.0, 1, 0, 1])
    mean, half = gain(before, after)
    assert mean == 0.25 and half == pytest.approx(1.96 * 0.5 / 2, abs=1e-5)


@pytest.mark.parametrize(('seeds', 'images'), [(1, 0.01), (3, 0.002), (3, 0.01), (5, 0.002)])
def test_intervals_hold_the_true_gain_as_often_as_they_say(seeds: int, images: float) -> None:
    generator = np.random.default_rng(0)
    held = []
    for _ in range(2_000):
        gains = 0.03 + images * generator.normal() + (0.01 if seeds > 1 else 0) * generator.normal(size=seeds)
        found = pooled([(gain, 1.96 * images) for gain in gains])
        held.append(abs(found.mean - 3) <= (found.half or 0))
    assert 0.92 < np.mean(held) < 0.98


def test_rows_are_compared_by_seed_and_jobs_of_one_model_add_up() -> None:
    def row(key: str, seed: int, gain: float, **more: Any) -> dict[str, Any]:
        pairs = {'one': [[gain, 0.01]] * 3}
        return {'name': f'D-{key}', 'seed': seed, 'key': f'D-{key}.{seed}', 'gain': pairs, **more}

    tuned = {'labels': {'5': {'tuned': [0.5, 0.6, 0.1, 0.01]}}}
    rows = [row('explora', 0, 0.30), row('explora', 1, 0.20, **tuned), row('full', 1, 0.21)]
    rows += [row('full', 0, 0.32), row('full', 2, 0.90), row('explora', 0, 0.30, **tuned)]
    (line,) = proof.differences({'AID': proof.once(rows)}, 'D-explora', proof.D_ROWS)[2:]
    half = 12.706 * 0.5  # the differences are -2 and -1, and seed 2 has no partner
    assert f'| 2 | -1.5 ± {half:.1f} |' in line and line.count('±') == 3
    rows = [dict(r, **tuned) for r in rows]
    (line,) = proof.differences({'AID': proof.once(rows)}, 'D-explora', proof.D_ROWS)[2:]
    assert line.endswith('| +0.0 ± <0.1 |')  # tuned alike


def domain() -> Domain:
    """Three classes of stripes of 32 px, which a random ViT tells apart a little."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(90) % 3
    wave = torch.sin(torch.arange(32) * (label[:, None] + 1) * 0.4)[:, None, None, :].expand(-1, 3, 32, -1)
    image = (128 + 60 * wave + 20 * torch.randn(90, 3, 32, 32, generator=generator)).clamp(0, 255).byte()
    rows = torch.arange(90)
    return Domain('eurosat', image, label, rows[:60], rows[:40], rows[40:60], rows[60:])


def test_jobs_leave_a_line_each_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_names: None
) -> None:
    monkeypatch.setitem(adapting.SOURCES, 'depth6', Source('vit_tiny_patch8_32', None, 32))
    torch.manual_seed(0)
    study = running.Study(tmp_path, tmp_path, tmp_path / 'out.jsonl', torch.device('cpu'))
    monkeypatch.setattr(study, 'domain', lambda name: domain())
    recipes = {
        'anchor': {'objective': 'Anchor', 'adaptation': '[L]-r2'},
        'D': {
            'objective': 'DINOv2',
            'adaptation': '[L]-r2',
            'arguments': {'views': {'blur': (0.5, 0.1, 0.3)}},
        },
        'bad': {'objective': 'Anchor', 'adaptation': '[9]-r2'},
    }
    jobs = [
        Job('t', name, 'depth6', 'eurosat', {**values, 'batch_size': 8}, 16)
        for name, values in recipes.items()
    ]
    told: list[str] = []
    (tmp_path / 'claims').mkdir()
    (tmp_path / 'claims' / jobs[0].key).touch()  # of a process that was killed
    running.work(study, jobs, float('inf'), told.append)
    rows = {row['key']: row for row in map(json.loads, study.out.read_text().splitlines())}
    done, failed = rows[jobs[0].key], rows[jobs[2].key]
    assert done['steps'] == 2 and len(done['gain']['one']) == 3
    assert done['label_free']['source'].keys() == SCORES.keys()
    assert rows[jobs[1].key]['recipe'] == {
        **recipes['D'],
        'batch_size': 8,
        'arguments': {'views': {'blur': [0.5, 0.1, 0.3]}},
    }
    assert failed['group'] == 'failed' and 'block' in failed['error'] and len(told) == 3
    running.work(study, jobs, float('inf'), told.append)
    assert len(told) == 3  # nothing is done twice


def test_models_are_kept_and_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_names: None
) -> None:
    monkeypatch.setitem(builders._SIZES, 'tiny', (32, 4, 2))
    source = Source('vit_tiny_patch8_32', None, 32)
    monkeypatch.setitem(adapting.SOURCES, 'depth6', source)
    monkeypatch.setitem(adapting.SOURCES, 'other', replace(source, beside='depth6'))
    monkeypatch.setattr(attention, 'STEPS', 20)
    study = running.Study(tmp_path, tmp_path, tmp_path / 'out.jsonl', torch.device('cpu'))
    monkeypatch.setattr(study, 'domain', lambda name: domain())
    values = {'objective': 'Anchor', 'adaptation': '[L]-r2', 'batch_size': 8}
    job = Job('t', 'a', 'other', 'eurosat', values, 16, variants=('one',), extras=())
    first = study.run(job)
    assert first['steps'] == 2 and 'label_free' not in first
    monkeypatch.setattr(running, 'adapt', None)  # nothing is adapted twice
    again = study.run(
        replace(job, budgets=(5, 0), tuned=True, extras=('attention', 'blocks'), transfer=('aid',))
    )
    assert again['after'] == first['after'] and again['key'] == f'{first["key"]}.labels'
    four = replace(job, variants=('one', 'last4'))
    reading = running.Reading(study.adapted(job)[0], source, held := domain())
    blocks = [reading.parts(block=b) for b in range(-4, 0)]
    wide = score(held, *(torch.cat(part, 1) for part in zip(*blocks, strict=True)))
    assert study.run(four)['after'] == {**first['after'], 'last4': wide.means} and four.key.endswith('.last4')
    for part in again['labels'].values():
        for before, after, mean, half in part.values():
            assert 0 <= before <= 1 and mean == pytest.approx(after - before, abs=1e-4) and half >= 0
    assert len(again['blocks']) == study.source('other').depth and len(again['attention']) == 4
    assert again['before'] == study.before('depth6', 'eurosat', 'scores', 'one').means  # not a random one's


@pytest.mark.parametrize('name', ['DINOv2', 'MAE', 'Anchor'])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_names: None
) -> None:
    monkeypatch.setattr(adapting, 'KEPT', 2)
    held, kept = domain(), tmp_path / 'a.kept'
    values = {'objective': name, 'adaptation': '[L]-r2', 'batch_size': 16}
    recipe = Job('t', name, 'x', 'eurosat', values, 16 * 7).recipe(60, 32, 8)
    run = partial(adapting.adapt, Source('vit_tiny_patch8_32', None, 32), recipe, held, held.archive, 0)
    whole, numbers = run()
    with monkeypatch.context() as patch:
        step = partial(_stop, adapting._keep, 4)
        patch.setattr(adapting, '_keep', step)
        with pytest.raises(KeyboardInterrupt):
            run(kept=kept)
    again, same = run(kept=kept)
    assert same == numbers
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def _stop(keep: Any, last: int, file: Path, step: int, *content: Any) -> None:
    """Keep a run, and be stopped soon after."""
    keep(file, step, *content)
    if step == last:
        raise KeyboardInterrupt


@pytest.mark.parametrize('name', RIVALS)
def test_rivals_learn(name: str, small_names: None) -> None:
    held = domain()
    values = {'objective': name, 'adaptation': '[L]-r2', 'batch_size': 16, 'base_lr': 3e-3}
    values |= {'arguments': {'images': 60}} if name == 'Diet' else {}
    recipe = Job('t', name, 'x', 'eurosat', values, 16 * 60).recipe(60, 32, 8)
    _, numbers = adapting.adapt(Source('vit_tiny_patch8_32', None, 32), recipe, held, held.archive, 0)
    assert numbers['loss'][1] < numbers['loss'][0]


def test_what_trains_more_costs_more(monkeypatch: pytest.MonkeyPatch, small_names: None) -> None:
    source = Source('vit_tiny_patch8_32', None, 32)
    held = SimpleNamespace(domain=lambda name: domain(), named=lambda name: source)
    held.source = lambda name: adapting.load_source(source)[0]
    monkeypatch.setattr(costs, 'Study', lambda *arguments: held)
    monkeypatch.setattr(costs, 'STEPS', 2)
    values = {'objective': 'Anchor', 'batch_size': 8}
    rows = [
        costs.measure(Path(), Path(), Job('t', name, 'x', 'eurosat', {**values, 'adaptation': what}, 16))
        for name, what in (('D-explora', '[L]-r2'), ('D-full', 'full'))
    ]
    assert 0 < rows[0]['gflop'] < rows[1]['gflop']
    assert all(row['batch'] == 8 and row['gb'] >= 0 for row in rows)
    assert '| full training |' in proof.costs(rows)[-1]


def test_labels_are_drawn_by_class_and_never_those_that_choose() -> None:
    held = domain()
    held = replace(held, archive=torch.arange(60))  # of which 40 to 59 choose
    rows = held.archive[draw_labels(held, 5, seed=1)]
    assert held.label[rows].bincount().tolist() == [5, 5, 5] and not torch.isin(rows, held.val).any()
    assert sorted(draw_labels(held, 0, 0).tolist()) == list(range(40))


def test_zones_of_tiles_are_compared_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / 'EuroSAT_MS' / 'River'
    folder.mkdir(parents=True)
    for number, zone in {1: 32632, 2: 32632, 10: 32633, 11: 32633}.items():
        about = {'width': 1, 'height': 1, 'count': 1, 'dtype': 'uint8', 'crs': f'EPSG:{zone}'}
        transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
        with rasterio.open(folder / f'River_{number}.tif', 'w', transform=transform, **about) as tile:
            tile.write(np.zeros((1, 1, 1), np.uint8))
    assert spatial.main(tmp_path) == (
        '3 pairs that follow one another: 67 % in the same UTM zone; drawn at random: 33 %'
    )


def test_scores_of_features_that_tell_classes_apart_are_high() -> None:
    held = domain()
    apart = [
        torch.nn.functional.one_hot(held.label[i], 8).float() + 0.1 * torch.randn(len(i), 8)
        for i in (held.train, held.val, held.test)
    ]
    assert min(score(held, *apart).means) > 0.9
    assert max(score(held, *(torch.randn_like(x) for x in apart)).means) < 0.7


def test_every_job_has_a_name_of_its_own() -> None:
    jobs = [job for group in read_groups().values() for job in group]
    names = {job.key for job in jobs}
    assert len(names) == len(jobs)
    done = [row for folder in ('study', 'proof') for row in read(RESULTS.parent / folder / 'runs.jsonl')]
    assert {row['key'] for row in done if 'recipe' in row} <= names  # so that nothing committed runs again
    for one in {str(job.values): job for job in jobs if job.views}.values():  # every recipe can be built
        assert one.recipe(10_000, 112, 14).steps >= 10


# What was measured and what the package says of it.


def test_the_committed_tables_are_those_of_the_committed_runs(tmp_path: Path) -> None:
    main(RESULTS / 'runs.jsonl', tmp_path)
    for name in ('README.md', 'label_free.json'):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), name


def test_the_committed_page_of_the_papers_rows_is_that_of_its_runs(tmp_path: Path) -> None:
    folder = RESULTS.parent / 'proof'
    proof.main(folder / 'runs.jsonl', tmp_path)
    assert (tmp_path / 'README.md').read_text() == (folder / 'README.md').read_text()
    figures = {path.name for path in folder.glob('*.png')}
    assert figures == {path.name for path in tmp_path.glob('*.png')}


def test_the_default_harmed_on_none_of_three_domains() -> None:
    rows = where(read(RESULTS / 'runs.jsonl'), name='anchor', source='depth6', images=0)
    for name in ('eurosat', 'aid', 'natural'):
        for views in (640, 6_400, 38_400):
            found = where(rows, domain=name, views=views)
            assert len({r['seed'] for r in found}) == 3
            worst = min(gain for r in found for gain, _ in r['gain']['one'])
            assert worst > -MARGIN, (name, views, worst)
            if views == 38_400:
                assert all(
                    combined(found, m).mean > combined(found, m).half
                    for m in range(2 if name != 'natural' else 1)
                )
    assert 'NAIP places' in '\n'.join(harm(read(RESULTS / 'runs.jsonl')))  # where it does is told beside


def test_what_reports_say_of_the_label_free_score_was_measured() -> None:
    found: dict[str, Any] = label_free(read(RESULTS / 'runs.jsonl'))
    chosen = found['scores'][DEFAULT_SCORE]
    for value in (
        *(f'{chosen[d][0]:.2f}' for d in ('eurosat', 'aid', 'natural')),
        found['runs'],
        found['harmed'],
    ):
        assert f' {value} ' in WORTH or f' {value},' in WORTH, value
    assert f'in {chosen["fell"]} of the' in WORTH and f'in {chosen["false"]} of the' in WORTH
    followed = {
        k: min(row[d][0] for d in ('eurosat', 'aid', 'natural')) for k, row in found['scores'].items()
    }
    assert max(followed, key=lambda k: followed[k]) == DEFAULT_SCORE and found['runs'] >= 30
