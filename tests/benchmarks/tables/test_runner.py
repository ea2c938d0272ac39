"""Rows run once, resume where they were stopped, and leave one line each."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks.tables import records, runner, work
from benchmarks.tables.jobs import build_job, split_batch
from benchmarks.tables.report import write_report
from benchmarks.tables.rows import get_table
from benchmarks.tables.runner import run_job, run_rows, search_pretraining, search_tuning
from benchmarks.tables.scales import Scale, Search
from benchmarks.tables.stages import Stage, Store
from benchmarks.tables.work import MODEL, prepare_source
from explora_geo import _adapt_progress
from explora_geo.checkpoints import load_backbone, read_state
from explora_geo.trainers import ExPLoRATask


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / 'store')


def run(name: str, rows: str, scale: Scale, store: Store, results: Path, seeds: int = 1) -> list[Any]:
    table = get_table(name)
    return run_rows(table, table.choose(rows), scale, seeds, store, results)


def test_a_row_leaves_a_line_with_all_that_it_took(
    tiny: Scale, store: Store, tmp_path: Path, metered: None
) -> None:
    results = tmp_path / 'results.jsonl'
    source, row = run('2', 'dinov2,d_l_r64,gassl', tiny, store, results)
    assert records.read(results) == [source, row]
    assert (row['table'], row['row'], row['seed'], row['scale']) == ('2', 'd_l_r64', 0, 'tiny')
    assert row['published'] == 77.48 and row['mark'] == 'I'
    assert (
        set(row['scores']) == {'logistic, all', 'knn, all'} and row['value'] == row['scores']['logistic, all']
    )
    assert 0 < row['trainable'] < row['parameters'] == source['parameters']
    assert (row['steps'], row['images_seen'], source['images_seen']) == (4, 32, 0)
    assert row['seconds'] > 0 and row['images_per_s'] > 0 and row['peak_memory'] >= 0 and row['flops'] > 0
    assert row['energy']['kg'] > row['energy']['pretrain_kg'] > 0
    assert row['energy']['method'] == 'measured, RAPL'
    assert row['versions']['torch'] == torch.__version__ and row['hardware']['device']
    assert [step for step, _ in row['curve']] == [0, 2, 4]
    assert set(row['stages']) == {'source', 'adapted', 'probed'}


def test_finished_stages_are_never_run_again_and_are_shared_by_tables(
    tiny: Scale, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / 'results.jsonl'
    first = run('3', 'l_r8', tiny, store, results)
    fitted = []
    monkeypatch.setattr(Trainer, 'fit', lambda *args, **kwargs: fitted.append(1))
    assert run('3', 'l_r8', tiny, store, results) == first
    # At rank 4 all that the scale has room for, so this row is the same run.
    (other,) = run('3', 'l_r32', tiny, store, results)
    assert other['stages'] == first[0]['stages'] and not fitted
    assert [r['row'] for r in records.read(results)] == ['l_r8', 'l_r32']


def test_a_report_shows_the_settings_that_were_run_last(tiny: Scale, store: Store, tmp_path: Path) -> None:
    results = tmp_path / 'results.jsonl'
    other = replace(tiny, pretrain={**tiny.pretrain, 'D': {**tiny.pretrain['D'], 'steps': 2}})
    seen = []
    for scale in (tiny, other, tiny, tiny):
        (record,) = run('3', 'l', scale, store, results)
        (shown,) = records.latest(records.read(results))
        assert shown == record
        seen.append(shown['images_seen'])
    assert seen == [32, 16, 32, 32] and len(records.read(results)) == 3


def test_batches_that_are_accumulated_are_one_step(
    tiny: Scale, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.data['fmow_rgb']
    small = replace(data, init_args={**data.init_args, 'batch_size': 2})
    timed = []

    def median(seconds: list[float]) -> float:
        timed.append(len(seconds))
        return 0.5

    monkeypatch.setattr(work.statistics, 'median', median)
    scale = replace(tiny, data={'fmow_rgb': small})
    record = run_job(build_job(get_table('3'), get_table('3').rows['l'], scale), store)
    assert [step for step, _ in record['curve']] == [0, 2, 4] and timed == [3]
    assert record['images_per_s'] == 16 and record['images_seen'] == 32
    tuned = run_job(build_job(get_table('1'), get_table('1').rows['dinov2_lora'], scale), store)
    assert tuned['tune_steps'] == 2


def test_a_batch_is_divided_among_devices(tiny: Scale) -> None:
    data = tiny.data['fmow_rgb']
    assert split_batch(tiny, data, 256) == (256, 1, 256)
    many = replace(tiny, trainer={'devices': 4, 'num_nodes': 2})
    assert split_batch(many, data, 256) == (32, 1, 256)
    assert split_batch(many, replace(data, init_args={'batch_size': 8}), 256) == (8, 4, 256)
    assert split_batch(replace(tiny, trainer={'devices': [1, 3]}), data, 64) == (32, 1, 64)


def test_rows_and_searches_go_on_where_only_the_results_are(
    tiny: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = replace(tiny, search=Search((1.0, 3.0), 2, 2))
    results, ledger = tmp_path / 'results.jsonl', tmp_path / 'stages.jsonl'
    first = run('3', 'l_r8', scale, Store(tmp_path / 'here', ledger=ledger), results)
    fitted: list[int] = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, 'fit', lambda *args, **kwargs: (fitted.append(1), fit(*args, **kwargs))[1])
    there = Store(tmp_path / 'there', ledger=ledger)
    assert run('3', 'l_r8', scale, there, results) == first and not fitted
    # The second seed needs neither the search nor the backbone of the first again.
    both = run('3', 'l_r8', scale, there, results, seeds=2)
    assert both[0] == first[0] and len(fitted) == 1
    assert both[1]['learning_rates'] == first[0]['learning_rates']
    # Lines of results say where the work was done, not where they were put together.
    monkeypatch.setattr(runner, 'describe_machine', lambda: {'hardware': {'device': 'another'}})
    anew = run('3', 'l_r8', scale, there, tmp_path / 'anew.jsonl')
    assert anew[0]['hardware'] == first[0]['hardware'] and anew[0]['versions'] == first[0]['versions']


@pytest.mark.parametrize('row', ['m_l_r64', 'd_l_r64'])
def test_a_killed_run_goes_on_at_the_step_of_its_checkpoint(
    row: str, tiny: Scale, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = get_table('2')
    job = build_job(table, table.rows[row], tiny)
    steps: list[int] = []
    step = ExPLoRATask.training_step

    def killed(self: ExPLoRATask, *args: Any) -> Any:
        steps.append(self.global_step)
        if len(steps) == 4:  # the checkpoint of step 2 is there
            raise RuntimeError('killed')
        return step(self, *args)

    monkeypatch.setattr(ExPLoRATask, 'training_step', killed)
    with pytest.raises(RuntimeError, match='killed'):
        run_job(job, store)
    assert steps == [0, 1, 2, 3]
    record = run_job(job, store)
    assert steps == [0, 1, 2, 3, 2, 3]
    assert [s for s, _ in record['curve']] == [0, 2, 4]
    (stage,) = store.folder.glob('adapted-*')
    found = Stage('adapted', {}, stage).record
    assert found['seconds'] > 0 and found['energy'] is None
    assert not (stage / 'resume.ckpt').exists()
    assert (stage / 'adapter.safetensors').is_file()


def test_without_resume_a_killed_run_starts_anew(
    tiny: Scale, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = get_table('2')
    job = build_job(table, table.rows['m_l_r64'], tiny)
    steps: list[int] = []
    step = ExPLoRATask.training_step

    def killed(self: ExPLoRATask, *args: Any) -> Any:
        steps.append(self.global_step)
        if len(steps) == 4:
            raise RuntimeError('killed')
        return step(self, *args)

    monkeypatch.setattr(ExPLoRATask, 'training_step', killed)
    with pytest.raises(RuntimeError, match='killed'):
        run_job(job, store)
    run_job(job, Store(store.folder, resume=False))
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3]


def test_the_rate_of_lora_is_no_part_of_rows_without_it(tiny: Scale) -> None:
    faster = {k: {**v, 'adapter_lr_multiplier': 3.0} for k, v in tiny.pretrain.items()}
    scale = replace(tiny, pretrain=faster)

    def multiplier(table: str, row: str) -> float:
        recipe = build_job(get_table(table), get_table(table).rows[row], scale).recipe
        assert recipe is not None
        return recipe.optim.adapter_lr_multiplier

    assert multiplier('3', 'l') == multiplier('3', 'scratch') == 1
    assert multiplier('3', 'l_r8') == multiplier('3m', 'l') == 3  # MAE's decoder has LoRA


def test_the_first_point_of_a_learning_curve_is_the_source(tiny: Scale, store: Store) -> None:
    table = get_table('3')
    rows = [run_job(build_job(table, table.rows[name], tiny), store) for name in ('l', 'lora_r256')]
    assert rows[0]['curve'][0] == rows[1]['curve'][0]


def test_the_merged_model_of_a_row_loads_and_differs_from_its_source_where_it_trained(
    tiny: Scale, store: Store
) -> None:
    table = get_table('3')
    record = run_job(build_job(table, table.rows['l'], tiny), store)
    before, after = (read_state(store.folder / record['stages'][k] / MODEL)[0] for k in ('source', 'adapted'))
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    trained = ('blocks.2.', 'blocks.0.norm', 'blocks.1.norm', 'norm.', 'cls_token')
    assert changed and all(k.startswith(trained) for k in changed)
    assert 'blocks.2.attn.qkv.weight' in changed
    load_backbone('vit_tiny_patch8_32', store.folder / record['stages']['adapted'] / MODEL)


@pytest.mark.parametrize('tuning', ['lora', 'full'])
def test_tuned_rows_score_the_test_part(tuning: str, tiny: Scale, store: Store) -> None:
    table = get_table('1')
    row = replace(table.rows['dinov2_lora'], tuning=tuning)  # type: ignore[arg-type]
    record = run_job(build_job(table, row, tiny), store)
    assert 0 <= record['value'] <= 100 and record['tune_steps'] == 2
    assert record['images'] == {'train': 18, 'test': 24}
    whole = record['tuned_parameters'] == record['parameters']
    assert whole is (tuning == 'full')


def test_a_row_is_tuned_on_a_label_budget_of_its_own(tiny: Scale, store: Store) -> None:
    table = get_table('labels')
    scale = replace(tiny, tune={'linear': tiny.tune['lora']}, curve=0)
    row = replace(table.rows['source_linear_10'], tune={'labels': '50%', 'steps': 3})
    record = run_job(build_job(table, row, scale), store)
    assert (record['labels'], record['tune_steps'], record['tuned_parameters']) == (9, 3, 0)


def test_rows_of_pre_training_alone_report_its_carbon(tiny: Scale, store: Store, metered: None) -> None:
    table = get_table('11')
    record = run_job(build_job(table, table.rows['d_rgb'], tiny), store)
    assert record['value'] == record['energy']['pretrain_kg'] > 0


def test_where_no_meter_is_the_carbon_stays_blank(
    tiny: Scale, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_adapt_progress, '_rapl_meters', lambda: [])
    table = get_table('11')
    found = run_rows(table, table.choose('d_rgb,m_rgb'), tiny, 1, store, tmp_path / 'results.jsonl')
    assert [r['value'] for r in found] == [None, None] and found[0]['energy'] is None
    text = write_report(tmp_path, table, tiny, found)[0].read_text()
    line = next(line for line in text.splitlines() if line.startswith('| D-ExPLoRA, fMoW-RGB |'))
    assert line.startswith('| D-ExPLoRA, fMoW-RGB | not published here | - |')


def test_random_starts_differ_by_seed_and_sources_do_not(tiny: Scale, store: Store) -> None:
    table = get_table('3')
    scratch = [prepare_source(store, build_job(table, table.rows['scratch'], tiny, s)).key for s in (0, 1)]
    source = [prepare_source(store, build_job(table, table.rows['l'], tiny, s)).key for s in (0, 1)]
    assert scratch[0] != scratch[1] and source[0] == source[1]


def test_every_row_is_searched_with_the_same_budget_on_held_out_training_images(
    tiny: Scale, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = replace(tiny, search=Search((0.5, 2.0), 2, 1))
    table = get_table('1')
    chosen: list[Any] = []
    original = work.probe

    def preferring(*args: Any, **kwargs: Any) -> Stage:
        stage = original(*args, **kwargs)
        chosen.append(stage.record['images'])
        return stage

    monkeypatch.setattr('benchmarks.tables.runner.probe', preferring)
    job = build_job(table, table.rows['d_l_r32'], scale, seed=1)
    found = search_pretraining(job, store)
    assert set(found.scores) == {'0.5', '2'} and found.factor in (0.5, 2.0)
    assert found.scores[f'{found.factor:g}'] == max(found.scores.values())
    assert all(images['test'] == 6 and images['train'] + images['val'] == 18 for images in chosen)
    steps = [Stage('', {}, f).record['steps'] for f in store.folder.glob('adapted-*')]
    assert steps == [2, 2]
    assert search_pretraining(replace(job, seed=0), store) == found
    record = run_job(job, store)
    assert record['learning_rates']['pretrain']['base_lr'] == pytest.approx(found.factor * 1e-3)
    assert set(record['learning_rates']['tune']['search']) == {'0.5', '2'}


@pytest.mark.parametrize(
    ('scores', 'tried', 'best'),
    [
        ({0.3: 0.60, 1: 0.61, 3: 0.50}, [0.3, 1, 3], 1),  # a best inside
        ({0.3: 0.61, 1: 0.60, 3: 0.50}, [0.3, 1, 3], 0.3),  # an end within the edge
        ({0.3: 0.70, 1: 0.60, 3: 0.50, 0.09: 0.65}, [0.3, 1, 3, 0.09], 0.3),
        ({0.3: 0.50, 1: 0.60, 3: 0.70, 9: 0.71}, [0.3, 1, 3, 9], 3),  # beyond, but not clearly better
        ({0.3: 0.50, 1: 0.60, 3: 0.70, 9: 0.80, 27: 0.81}, [0.3, 1, 3, 9, 27], 9),
        ({0.3: 0.50, 1: 0.60, 3: 0.70, 9: 0.80, 27: 0.90}, [0.3, 1, 3, 9, 27], 27),  # and then no further
    ],
)
def test_where_an_end_is_clearly_best_rates_beyond_it_are_tried(
    scores: dict[float, float],
    tried: list[float],
    best: float,
    tiny: Scale,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def adapt(store: Store, job: Any, source: Stage, factor: float, steps: int) -> float:
        asked.append(factor)
        return factor

    def probe(store: Store, job: Any, model: float, validate: bool) -> Any:
        return Stage('probed', {}, Path(), {'value': scores[model]})

    monkeypatch.setattr('benchmarks.tables.runner.adapt', adapt)
    monkeypatch.setattr('benchmarks.tables.runner.probe', probe)
    scale = replace(tiny, search=Search((0.3, 1.0, 3.0), 2, 2, edge=0.02))
    job = build_job(get_table('3'), get_table('3').rows['l'], scale)
    found = search_pretraining(job, store)
    assert asked == tried and found.factor == best
    assert found.scores == {f'{f:g}': scores[f] for f in tried}
    if len(tried) > 3:  # without an edge none is tried beyond
        asked.clear()
        plain = replace(job, scale=replace(scale, search=Search((0.3, 1.0, 3.0), 2, 2)))
        search_pretraining(plain, store)
        assert asked == [0.3, 1, 3]


def test_rows_that_are_not_pre_trained_are_tuned_with_the_same_search(tiny: Scale, store: Store) -> None:
    scale = replace(tiny, search=Search((1.0, 2.0), 2, 1))
    table = get_table('1')
    job = build_job(table, table.rows['dinov2_lora'], scale)
    assert search_pretraining(job, store).scores == {}
    found = search_tuning(job, store, prepare_source(store, job))
    assert set(found.scores) == {'1', '2'}


def test_a_search_without_held_out_images_is_refused(
    scale_file: Callable[..., Path], tiny: Scale, store: Store
) -> None:
    data = {k: replace(d, init_args={**d.init_args, 'val_split': 0.0}) for k, d in tiny.data.items()}
    scale = replace(tiny, data=data, search=Search((1.0,), 1, 1))
    table = get_table('3')
    with pytest.raises(ValueError, match='a search needs held-out training images'):
        run_job(build_job(table, table.rows['l'], scale), store)


def test_missing_sources_are_named(tiny: Scale, store: Store, tmp_path: Path) -> None:
    sources = {'D': replace(tiny.sources['D'], weights=str(tmp_path / 'none.safetensors'))}
    table = get_table('3')
    with pytest.raises(FileNotFoundError, match=r'none\.safetensors: create the source first'):
        run_job(build_job(table, table.rows['source'], replace(tiny, sources=sources)), store)


def test_another_seed_image_or_recipe_is_another_stage(
    tiny: Scale, store: Store, tiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, 'run', lambda self, kind, content, work, **_: self.stage(kind, content))
    table = get_table('3')
    keys = set()

    def key(**changes: Any) -> str:
        job = replace(build_job(table, table.rows['l'], tiny), **changes)
        found = work.adapt(store, job, store.stage('source', {}), 1.0).key
        keys.add(found)
        return found

    first = key()
    assert key() == first
    key(seed=1)
    recipe: Mapping[str, Any] = {'recipe': build_job(table, table.rows['l_r8'], tiny).recipe}
    key(**recipe)
    key(scale=replace(tiny, trainer={'accelerator': 'cpu', 'gradient_clip_val': 1.0}))
    assert key(scale=replace(tiny, trainer={'strategy': 'auto'})) == first
    (tiles / 'River' / next((tiles / 'River').iterdir()).name).unlink()
    key()
    assert len(keys) == 5
