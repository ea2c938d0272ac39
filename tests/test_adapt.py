"""The main job as one verb: from an archive to an adapter and a report."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import explora_geo
from explora_geo import _adapt_report
from explora_geo._adapt import Adapted
from explora_geo._adapt_progress import Watch, read_legs
from explora_geo._adapt_report import choose_strength
from explora_geo._adapt_settings import Length, find_source
from explora_geo.checkpoints import load_backbone, model_metadata, read_adapter, write_state
from explora_geo.datamodules.archive import look
from explora_geo.evaluation.comparison import Comparison, PairProtocol, interpolate
from explora_geo.evaluation.label_free import default_score
from explora_geo.models import create_vit
from explora_geo.objectives import MAE

TILES = Path(__file__).parent / 'data' / 'eurosat_rgb'
MODEL = 'vit_tiny_patch8_32'


@pytest.fixture
def weights(tmp_path: Path, small_names: None) -> Path:
    """A small random backbone in a file that says what it is."""
    torch.manual_seed(0)
    vit = create_vit(MODEL)
    file = tmp_path / 'source.safetensors'
    write_state(file, vit.state_dict(), model_metadata(vit, MODEL))
    return file


@pytest.fixture(autouse=True)
def _few_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of two draws and one penalty, for speed."""
    protocol = PairProtocol(draws=2, penalties=(0.1,), resamples=50)
    monkeypatch.setattr(_adapt_report, 'PROTOCOL', protocol)
    monkeypatch.setattr(_adapt_report, 'STRENGTHS', (0.5, 1.0))


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Twelve real tiles of each of three classes."""
    for name in ('Forest', 'Residential', 'River'):
        folder = tmp_path / 'tiles' / name
        folder.mkdir(parents=True)
        for file in sorted((TILES / 'train' / name).iterdir())[:12]:
            shutil.copy(file, folder)
    return tmp_path / 'tiles'


def adapt(tiles: Path, weights: Path, out: Path, **options: Any) -> Adapted:
    return explora_geo.adapt(tiles, out, weights, **{'length': '2 steps', **options})


def test_an_archive_becomes_an_adapter_and_a_report_that_later_stages_read(
    tiles: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'run'
    adapted = adapt(tiles, weights, out, labels=tiles, retention=tiles, strength=1)
    assert {f.name for f in out.iterdir()} >= {
        'adapter.safetensors',
        'config.yaml',
        'report.json',
        'report.html',
    }
    report = json.loads((out / 'report.json').read_text())
    assert report == adapted.report
    assert report['adaptation']['objective'] == 'anchor' and report['adaptation']['steps'] == 2
    assert [row['metric'] for row in report['scores']['rows']] == ['knn', 'linear', 'few']
    assert all(row['best_block'] and row['turns_source'] for row in report['scores']['rows'])
    assert report['strength']['x'][0] == 0 and report['retention']['row']['metric'] == 'knn'
    page = adapted.page.read_text()
    assert page.index(report['verdict']['text'].split('<')[0][:30]) < 40_000
    # The source is normalized as the adapter says, and what the file holds acts.
    header, _ = read_adapter(adapted.adapter)
    assert header.normalization is not None and header.img_size == 64
    image = torch.randn(2, 3, 64, 64)
    before, after = load_backbone(MODEL, weights, img_size=64), load_backbone(MODEL, weights, adapted.adapter)
    assert not torch.allclose(before(image).patches, after(image).patches)
    # Nobody is locked in: fit reads the settings.
    assert run_app_code(['fit', '--config', str(out / 'config.yaml'), '--dry-run']) == 0


@pytest.mark.slow
def test_patch_alignment_is_named_by_its_notation(tiles: Path, weights: Path, tmp_path: Path) -> None:
    adapted = adapt(tiles, weights, tmp_path / 'run', adaptation='align-[L]-r4')
    how = adapted.report['adaptation']
    assert how['objective'] == 'patchalignment' and how['steps'] == 2
    assert 'Patch alignment [L]-r4 (PaKa, not ExPLoRA)' in adapted.page.read_text()


def run_app_code(args: list[str]) -> int:
    from explora_geo.cli import main

    try:
        main(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_same_call_goes_on_and_another_is_refused(tiles: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    first = adapt(tiles, weights, out)
    before = read_adapter(first.adapter)[1]
    after = read_adapter(adapt(tiles, weights, out).adapter)[1]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    with pytest.raises(
        ValueError, match=r"run contains a run with other settings \(length '2 steps', now '3"
    ):
        adapt(tiles, weights, out, length='3 steps')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.tex').touch()
    with pytest.raises(ValueError, match='full contains other files'):
        adapt(tiles, weights, tmp_path / 'full')


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(
    tiles: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / 'every.yaml'
    keeper = {'dirpath': str(tmp_path / 'cut' / 'run'), 'save_last': True, 'save_top_k': 0}
    keeper['every_n_train_steps'] = 1
    callback = {'class_path': 'lightning.pytorch.callbacks.ModelCheckpoint', 'init_args': keeper}
    config.write_text(yaml.safe_dump({'trainer': {'callbacks': [callback], 'precision': '32-true'}}))
    shutil.copy(config, tmp_path / 'whole.yaml')
    text = (tmp_path / 'whole.yaml').read_text().replace('cut', 'whole')
    (tmp_path / 'whole.yaml').write_text(text)
    whole = adapt(tiles, weights, tmp_path / 'whole', length='4 steps', config=tmp_path / 'whole.yaml')

    original = Watch.on_train_batch_end

    def interrupt(self: Any, trainer: Any, *rest: Any) -> None:
        original(self, trainer, *rest)
        if trainer.global_step == 3:
            raise KeyboardInterrupt

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Watch, 'on_train_batch_end', interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            adapt(tiles, weights, tmp_path / 'cut', length='4 steps', config=config, say=said.append)
    assert (
        'Repeat the command to resume from' in said[-1]
        and not (tmp_path / 'cut' / 'adapter.safetensors').exists()
    )
    cut = adapt(tiles, weights, tmp_path / 'cut', length='4 steps', config=config)
    steps = [run.report['curves'][0]['x'] for run in (whole, cut)]
    assert steps[0] == steps[1] == [0, 1, 2, 3]
    # Both legs count, with the step that was done twice.
    assert [leg['images'] for leg in read_legs(tmp_path / 'cut' / 'run')] == [3 * 36, 2 * 36]
    assert cut.report['cost']['seconds']['training'] > 0
    states = [read_adapter(run.adapter)[1] for run in (whole, cut)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize(
    'adaptation', [pytest.param('D-ExPLoRA-[L]-r4', marks=pytest.mark.slow), 'M-ExPLoRA-[L]-r4']
)
def test_the_papers_objectives_are_at_hand(
    tiles: Path, weights: Path, tmp_path: Path, adaptation: str
) -> None:
    if adaptation[0] == 'M':  # a decoder that comes with weights is as small as they are
        vit = create_vit(MODEL)
        state = vit.state_dict() | MAE(vit, decoder_embed_dim=32, decoder_depth=1).extra_state()
        write_state(weights, state, model_metadata(vit, MODEL))
    adapted = adapt(tiles, weights, tmp_path / 'run', length='1 step', adaptation=adaptation, force=True)
    header, _ = read_adapter(adapted.adapter)
    assert header.explora_config.rank == 4
    assert adapted.report['adaptation']['objective'] == {'D': 'dinov2', 'M': 'mae'}[adaptation[0]]
    assert ('reconstruct' in adapted.page.read_text().lower()) == (adaptation[0] == 'M')


@pytest.mark.slow
def test_a_strength_scales_the_file_that_is_written_without_training_again(
    tiles: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randn(2, 3, 64, 64)
    config = tmp_path / 'fast.yaml'
    optim = {'base_lr': 0.03, 'lr_scaling': 'none'}
    config.write_text(yaml.safe_dump({'model': {'init_args': {'optim': optim}}}))
    found = {}
    for strength in (1, 0.25, 0):
        adapted = adapt(tiles, weights, tmp_path / 'run', strength=strength, config=config)
        vit = load_backbone(MODEL, weights, adapted.adapter)
        found[strength] = torch.cat([p.detach().flatten() for p in vit.parameters()])
        assert adapted.report['adaptation']['strength'] == strength
        assert adapted.report['adaptation']['steps'] == 2
    source = load_backbone(MODEL, weights, img_size=64)
    assert torch.equal(source(image).patches, vit(image).patches)  # to the last digit
    torch.testing.assert_close(
        found[0.25], found[0] + 0.25 * (found[1] - found[0]), atol=1e-3, rtol=0.01
    )  # bfloat16
    assert (found[1] - found[0]).abs().max() > 0.01
    assert adapted.report['verdict']['text'] == 'The source is left unchanged.'


@pytest.mark.slow
@pytest.mark.parametrize('chosen', [0.0, 0.5])
def test_validation_chooses_the_strength_and_the_source_may_win(
    tiles: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: float
) -> None:
    original = Comparison.curve
    monkeypatch.setattr(Comparison, 'curve', lambda self: {**original(self), 'chosen': chosen})
    adapted = adapt(tiles, weights, tmp_path / 'run', labels=tiles)
    report = adapted.report
    assert (report['adaptation']['strength'], report['adaptation']['strength_by']) == (chosen, 'labels')
    assert report['strength']['x'] == [0, 0.5, 1] and report['strength']['chosen'] == chosen
    # The table shows what the file holds.
    at = report['strength']['x'].index(chosen)
    for row, series in zip(report['scores']['rows'], report['strength']['series'], strict=True):
        assert row['adapted']['mean'] == series['y'][at]
    if not chosen:
        assert report['verdict']['text'] == 'Adapting did not help.'
        assert report['verdict']['advice'].startswith('Keep the source: no strength tried was better')
        assert all(row['gain']['mean'] == 0 for row in report['scores']['rows'])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'adaptation': '[L]-r4'}, 'adaptation must name an objective and blocks'),
        ({'adaptation': 'full'}, 'adaptation must name an objective and blocks'),
        ({'strength': 2}, r'strength must be auto or between 0 \(the source\) and 1 .* got 2'),
        ({'length': 'a while'}, 'length must look like "30 minutes"'),
        ({'bands': 'red,nir'}, 'nir'),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tiles: Path, weights: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        adapt(tiles, weights, tmp_path / 'run', **options)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('kind', ['scenes', 'list', 'pack'])
def test_an_archive_may_be_scenes_a_list_or_a_pack(
    tiles: Path, weights: Path, tmp_path: Path, kind: str
) -> None:
    archive: Any = tmp_path / f'{kind}.txt'
    bands = None
    if kind == 'scenes':
        archive = sorted((TILES.parent / 'naip').glob('*.tif'))
        bands = 'red=1,green=2,blue=3'
    elif kind == 'list':
        archive.write_text('\n'.join(map(str, sorted(tiles.rglob('*.jpg')))))
    else:
        assert run_app_code(['pack', str(tiles), str(archive)]) == 0
    config = tmp_path / 'small.yaml'
    config.write_text('data: {init_args: {batch_size: 4}}')
    adapted = adapt(archive, weights, tmp_path / 'run', bands=bands, config=config)
    assert adapted.report['archive']['kind'] == {'list': 'tiles'}.get(kind, kind)
    assert adapted.report['adaptation']['views'] == 8 and adapted.page.is_file()


@pytest.mark.slow
def test_other_bands_start_from_wavelengths_and_train(weights: Path, tmp_path: Path) -> None:
    archive, names = TILES.parent / 'eurosat_ms', ('B02', 'B03', 'B04', 'B08')
    bands = [f'{name}={int(name[1:])}' for name in names]
    with pytest.raises(ValueError, match='strength must be 1 for the bands B02, B03, B04, B08'):
        adapt(archive, weights, tmp_path / 'run', bands=bands, strength=0.5)
    adapted = adapt(archive, weights, tmp_path / 'run', bands=bands, labels=archive)
    header, state = read_adapter(adapted.adapter)
    assert header.bands == names and 'patch_embed.proj.weight' in state
    report = adapted.report
    assert report['adaptation']['strength'] == 1 and 'strength' not in report
    # The source reads all four bands: its filters by wavelength, which two steps have hardly moved.
    source = find_source(weights).backbone(look(archive, bands, 8))
    filters = state['patch_embed.proj.weight'].float()
    assert 0 < (source.patch_embed.proj.weight - filters).abs().max() < 0.02
    assert torch.allclose(source.patch_embed.proj.weight[:, 3], source.patch_embed.proj.weight[:, 2])


def test_lengths_become_steps_once() -> None:
    assert Length.parse('2 epochs').steps(images=100, batch_size=8, seconds=1) == 25
    assert Length.parse('1 minute').steps(images=100, batch_size=8, seconds=0.5) == 120
    assert Length.parse('7 steps').steps(images=100, batch_size=8, seconds=0.5) == 7
    assert str(Length.parse('30 minutes')) == '30 minutes'
    assert str(Length.parse('1000000.0 epochs')) == str(Length.parse('1e+06 epochs')) == '1e+06 epochs'


def test_without_labels_the_strength_falls_where_the_label_free_score_does(small_names: None) -> None:
    torch.manual_seed(0)
    before = create_vit('vit_tiny_patch8_32').eval()
    whole = copy.deepcopy(before)
    with torch.no_grad():
        whole.norm.weight.zero_()  # all features alike: no crop finds its tile
    images = torch.nn.functional.interpolate(torch.randn(40, 3, 4, 4), size=32, mode='bicubic')
    worse, same = (
        lambda s, vit=vit: default_score(interpolate(before, vit, s), images) for vit in (whole, before)
    )
    assert worse(0) == default_score(before, images) > 2 / 40 > worse(1)
    strength, by = choose_strength(None, {}, worse)
    assert strength < 1 and by == 'label-free'
    assert choose_strength(None, {}, same) == choose_strength(None, {}, None) == (1.0, 'default')
    assert choose_strength(None, {'chosen': 0.5}, worse) == (0.5, 'labels')
    assert choose_strength(0.3, {'chosen': 0.5}, worse) == (0.3, 'request')
