"""The folder of a run's files is known without asking other processes."""

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from explora_geo.trainers.folder import run_folder


@pytest.mark.parametrize('logged', [True, False])
def test_it_is_lightnings_but_for_the_wait(
    logged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CSVLogger(tmp_path, name='runs', version='one') if logged else False
    trainer = Trainer(default_root_dir=tmp_path, logger=logger, accelerator='cpu', enable_progress_bar=False)
    expected = trainer.log_dir
    assert expected is not None

    def stall(found: object, src: int = 0) -> object:
        raise AssertionError('the first process alone waits for ever')

    monkeypatch.setattr(trainer.strategy, 'broadcast', stall)
    assert run_folder(trainer) == Path(expected)
    assert run_folder(trainer) == (tmp_path / 'runs' / 'one' if logged else tmp_path)
