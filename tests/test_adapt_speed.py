"""What `adapt` chooses by measurement, and what it adds up while it trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from explora_geo import _adapt_progress, _adapt_speed
from explora_geo._adapt_progress import EnergyMeter, Watch
from explora_geo._adapt_report import watch
from explora_geo._adapt_settings import Length, Options, Run, find_source
from explora_geo._adapt_speed import Trial, settle, try_steps
from explora_geo.datamodules.archive import Archive, look

TILES = Path(__file__).parent / 'data' / 'eurosat_rgb' / 'train'


@pytest.fixture(scope='module')
def found() -> Archive:
    """The shipped training tiles."""
    return look(TILES)


@pytest.fixture
def settings(found: Archive, base_file: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a small random backbone."""
    from explora_geo.checkpoints import model_metadata, write_state
    from explora_geo.models import create_vit

    vit = create_vit('vit_tiny_patch8_32')
    write_state(tmp_path / 'small.safetensors', vit.state_dict(), model_metadata(vit, 'vit_tiny_patch8_32'))
    source = find_source(tmp_path / 'small.safetensors')
    return Run(tmp_path / 'run', found, source, 'anchor-[L]-r4').settings()


class Machine:
    """A machine whose speed is known: images per second by batch and reading processes."""

    def __init__(self, rates: dict[tuple[int, int], Any]) -> None:
        self.rates, self.tried = rates, []  # type: ignore[var-annotated]

    def __call__(self, settings: Any, batch: int, workers: int, steps: int = 3) -> Trial:
        self.tried.append((batch, workers))
        rate, waited, memory = (*self.rates[batch, workers], 0.0, 0.0)[:3]
        if not rate:
            raise torch.OutOfMemoryError
        return Trial(batch, workers, batch / rate, waited, memory)


@pytest.mark.parametrize(
    ('rates', 'length', 'stated', 'chosen', 'tried'),
    [
        # A larger batch is taken as long as it gains a tenth.
        ({(64, 0): (1000,), (128, 0): (1500,), (256, 0): (1550,)}, '30 minutes', {}, (128, 0), 3),
        ({(64, 0): (1000,), (128, 0): (1050,)}, '30 minutes', {}, (64, 0), 2),
        # What a larger one would take is more than half of the memory.
        ({(64, 0): (1000, 0.0, 0.3)}, '30 minutes', {}, (64, 0), 1),
        ({(64, 0): (1000,), (128, 0): (0,)}, '30 minutes', {}, (64, 0), 2),
        # What does not fit is halved until it does.
        ({(64, 0): (0,), (32, 0): (0,), (16, 0): (500,)}, '3 steps', {}, (16, 0), 3),
        # Short runs measure nothing more.
        ({(64, 0): (16,)}, '2 minutes', {}, (64, 0), 1),
        ({(64, 0): (16, 0.9)}, '24 steps', {}, (64, 0), 1),
        # Processes that read are tried where training waits, and kept where they gain.
        ({(64, 0): (1000, 0.3), (128, 0): (1000,), (64, 4): (1400,)}, '30 minutes', {}, (64, 4), 3),
        ({(64, 0): (1000, 0.3), (128, 0): (1000,), (64, 4): (1001,)}, '30 minutes', {}, (64, 0), 3),
        # What the user states is not chosen.
        ({(64, 0): (1000, 0.3)}, '30 minutes', {'batch_size': 64, 'num_workers': 0}, (64, 0), 1),
    ],
)
def test_batch_and_reading_processes_are_chosen_by_measurement(
    found: Archive,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[tuple[int, int], Any],
    length: str,
    stated: dict[str, int],
    chosen: tuple[int, int],
    tried: int,
) -> None:
    machine = Machine(rates)
    monkeypatch.setattr(_adapt_speed, 'try_steps', machine)
    monkeypatch.setattr(_adapt_speed.os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(_adapt_speed, 'faster_precision', lambda: 'bf16-mixed')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: None)
    settled, trials = settle(settings, {'data': {'init_args': stated}}, found, Length.parse(length))
    init = settled['data']['init_args']
    assert (init['batch_size'], init['num_workers']) == chosen
    assert len(machine.tried) == tried and (trials[0].batch_size, trials[0].workers) == chosen
    if length == '30 minutes':
        assert settled['trainer']['max_steps'] == int(1800 / trials[0].seconds)
    assert trials[0].to_dict()['images_per_second'] == trials[0].rate


def test_a_batch_that_the_user_states_and_memory_does_not_hold_is_one_sentence(
    found: Archive, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_adapt_speed, 'try_steps', Machine({(64, 0): (0,)}))
    with pytest.raises(ValueError, match='a batch of 64 images of 128 px does not fit in memory'):
        settle(settings, {'data': {'init_args': {'batch_size': 64}}}, found, Length.parse('1 minute'))


def test_real_steps_are_timed_and_leave_nothing_behind(settings: dict[str, Any], tmp_path: Path) -> None:
    settings['trainer']['precision'] = '32-true'
    before = sorted(tmp_path.rglob('*'))
    found = try_steps(settings, 16, 0)
    assert found.batch_size == 16 and 0 < found.seconds < 30 and 0 <= found.waited <= 1
    assert sorted(tmp_path.rglob('*')) == before


def test_meters_are_added_up_across_the_end_of_a_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_adapt_progress, 'RAPL', tmp_path)
    assert EnergyMeter().watt_hours is None or torch.cuda.is_available()
    package = tmp_path / 'intel-rapl:0'
    for folder in (package, tmp_path / 'intel-rapl:0:0'):
        folder.mkdir()
        (folder / 'max_energy_range_uj').write_text('100000000\n')
        (folder / 'energy_uj').write_text('90000000\n')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    meter = EnergyMeter()
    (package / 'energy_uj').write_text('26000000\n')
    assert meter.watt_hours == pytest.approx(36 / 3600)
    (package / 'energy_uj').write_text('98000000\n')
    assert meter.watt_hours == pytest.approx(108 / 3600)


@pytest.mark.parametrize('times', [0, 4])
def test_a_run_is_scored_a_few_times_after_the_source(
    settings: dict[str, Any], tmp_path: Path, times: int
) -> None:
    seen = []

    def prepare() -> Any:
        return lambda vit: seen.append(vit) or 0.5 + 0.1 * len(seen)

    trainer = {**settings['trainer'], 'max_steps': 10, 'precision': '32-true', 'log_every_n_steps': 1}
    settings['data']['init_args']['batch_size'] = 8
    command = _adapt_speed.prepare({**settings, 'trainer': trainer})
    score = Watch(tmp_path / 'run' / 'run', 'so_far', 'k-NN', prepare, times)
    command.trainer.callbacks.append(score)
    command.trainer.fit(command.model, datamodule=command.datamodule)
    assert len(seen) == (1 + times if times else 0)
    if times:
        assert score.text == 'k-NN 1.000 (source 0.600)'
        # Copies are scored, and what trains goes on training.
        assert all(vit is not command.model.backbone for vit in seen) and not seen[0].training
        log = (tmp_path / 'run' / 'run' / 'metrics.csv').read_text().splitlines()
        assert 'so_far' in log[0]
    assert isinstance(command.trainer, Trainer) and command.trainer.global_step == 10


@pytest.mark.parametrize(('steps', 'times'), [(10, 0), (160, 1), (100_000, 4)])
@pytest.mark.parametrize('labels', [TILES, None])
def test_scores_on_the_way_take_two_per_cent_of_the_time(
    found: Archive, labels: Path | None, steps: int, times: int
) -> None:
    trainer, datamodule = SimpleNamespace(max_steps=steps), SimpleNamespace(batch_size=32)
    command: Any = SimpleNamespace(trainer=trainer, datamodule=datamodule)
    run: Any = SimpleNamespace(training=Path(), found=found, options=Options(labels))
    assert max(watch(command, run, seconds=2.0).times, 0) == times
