"""Scales, and what rows do at them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tables.jobs import build_job, why_not
from benchmarks.tables.rows import get_table, read_tables
from benchmarks.tables.scales import SCALES, Scale, get_scale, read_scale


@pytest.mark.parametrize('path', sorted(SCALES.glob('*.yaml')), ids=lambda p: p.stem)
def test_every_row_of_every_table_runs_at_a_scale_or_says_why_not(path: Path) -> None:
    scale = read_scale(path)
    for table in read_tables().values():
        for row in table.rows.values():
            if not why_not(table, row, scale):
                job = build_job(table, row, scale)
                assert job.recipe is None or job.recipe.steps > 0
                assert job.data.class_path.startswith(('explora_geo.datamodules.', 'explora_bench.datasets.'))


@pytest.mark.parametrize('name', ['small', 'small_vit_tiny16'])
def test_all_rows_of_the_ablations_see_the_same_images(name: str) -> None:
    scale = get_scale(name)
    for table in ('3', '3m'):
        jobs = [build_job(get_table(table), row, scale) for row in get_table(table).rows.values()]
        seen = {j.recipe.steps * j.recipe.batch_size for j in jobs if j.recipe is not None}
        assert len(seen) == 1 and len(jobs) > 10


def test_the_papers_recipes_are_the_published_ones() -> None:
    scale = get_scale('paper')
    workshop = build_job(get_table('10'), get_table('10').rows['d_l_r32_lora'], scale).recipe
    assert workshop is not None
    assert (workshop.steps, workshop.batch_size, workshop.optim.base_lr) == (200_000, 32, 5e-3)
    sentinel = build_job(get_table('5'), get_table('5').rows['m_ends_r32'], scale)
    assert sentinel.recipe is not None and sentinel.recipe.optim.base_lr == 4.5e-4
    assert sentinel.recipe.steps == 50 * 712_874 // 1024
    assert sentinel.tune.epochs == 120 and sentinel.tune.batch_size == 256


def test_every_row_of_the_ablation_has_one_recipe_and_a_probe_of_the_last_four_blocks() -> None:
    table, recipes = get_table('3'), set()
    for row in table.rows.values():
        recipe = build_job(table, row, get_scale('paper')).recipe
        if recipe is not None:
            scale = None if not recipe.adaptation.rank else recipe.adaptation.alpha
            recipes.add((recipe.steps, recipe.batch_size, recipe.optim.base_lr, scale))
    assert {r[1:] for r in recipes} == {(1024, 1e-3, 1.0), (1024, 1e-3, None)}
    assert len({r[0] for r in recipes}) == 1
    for name in [n for n in table.rows if not n.endswith('_4')]:
        row, last = table.rows[name], table.rows[f'{name}_4']
        assert last.last_blocks == 4 and not row.last_blocks
        same = ('objective', 'start', 'adaptation', 'options', 'preset', 'steps', 'published')
        assert all(getattr(row, key) == getattr(last, key) for key in same)


def test_released_weights_take_the_place_of_pre_training_at_the_papers_scale_only(tiny: Scale) -> None:
    table = get_table('1')
    job = build_job(table, table.rows['satmae_lora'], get_scale('paper'))
    assert job.recipe is None and job.source.weights == 'ViTLarge16_Weights.FMOW_RGB_SATMAE'
    job = build_job(table, table.rows['satmae_lora'], tiny)
    assert job.recipe is not None and job.recipe.adaptation.full and not job.source.weights


def test_ranks_fit_the_backbone(tiny: Scale) -> None:
    table = get_table('3')
    job = build_job(table, table.rows['lora_all'], tiny)
    assert job.recipe is not None and job.recipe.adaptation.rank == 4
    assert job.recipe.adaptation.targets == ('q', 'k', 'v', 'proj', 'fc1', 'fc2')


def test_pre_training_reads_the_unlabeled_part_where_the_paper_does() -> None:
    table = get_table('4')
    job = build_job(table, table.rows['d_l_r32_lora'], get_scale('paper'))
    assert job.pretrain_data.init_args['unlabeled'] is True
    assert 'unlabeled' not in job.data.init_args


def test_a_row_without_its_data_says_so(tiny: Scale) -> None:
    table = get_table('5')
    assert why_not(table, table.rows['m_ends_r32'], tiny) == 'no fmow_sentinel at the scale tiny'
    with pytest.raises(ValueError, match='table 5, row m_ends_r32 does not run: no fmow_sentinel'):
        build_job(table, table.rows['m_ends_r32'], tiny)


def test_a_scale_with_a_base_holds_what_differs(tmp_path: Path) -> None:
    path = tmp_path / 'small.yaml'  # the name of its base, as a user may call it
    path.write_text(
        'base: small\nabout: longer\nsources: {M: null}\n'
        'pretrain: {D: {steps: 600, arguments: {load_heads: null}}}\n'
    )
    scale, base = read_scale(path), get_scale('small')
    assert scale.sources == {'D': base.sources['D']} and scale.about == 'longer'
    assert scale.pretrain['D']['steps'] == 600
    assert scale.pretrain['D']['arguments'].keys() | {'load_heads'} == base.pretrain['D']['arguments'].keys()
    assert {
        **scale.pretrain['D'],
        'steps': 200,
        'arguments': base.pretrain['D']['arguments'],
    } == base.pretrain['D']
    assert (scale.data, scale.tune, scale.probe, scale.search) == (
        base.data,
        base.tune,
        base.probe,
        base.search,
    )
    path.write_text('base: none\nabout: nothing\n')
    with pytest.raises(FileNotFoundError, match=r'scale .*none\.yaml does not exist'):
        read_scale(path)


def test_bad_scales_are_named(scale_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'tiny\.yaml: unknown keys epochs'):
        read_scale(scale_file(epochs=3))
    with pytest.raises(ValueError, match=r'tiny\.yaml, probe: unknown keys method'):
        read_scale(scale_file(probe={'method': 'knn'}))
    with pytest.raises(ValueError, match="unknown scale 'tiny', expected one of demo, paper, small"):
        get_scale('tiny')
    with pytest.raises(FileNotFoundError, match=r'scale .*none\.yaml does not exist'):
        get_scale(str(tmp_path / 'none.yaml'))


def test_options_that_came_later_do_not_rename_the_committed_stages(tiny: Scale) -> None:
    recipe = build_job(get_table('3'), get_table('3').rows['l_r32'], tiny).recipe
    assert recipe is not None
    first = 'alpha dropout extra mlp_rank_ratio rank targets train_cls_token train_norms unfrozen_blocks'
    assert set(recipe.to_dict()['adaptation']) == set(first.split())
    later = replace(recipe, adaptation=replace(recipe.adaptation, rank_stabilized=True))
    assert later.to_dict()['adaptation']['rank_stabilized'] is True
