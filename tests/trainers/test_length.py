"""How long a run is, before it starts."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from explora_geo.trainers.length import RunLength, run_length


@pytest.mark.parametrize(
    'length', [{'max_steps': 8}, {'max_steps': 8, 'max_epochs': 9}, {'max_epochs': 2}], ids=str
)
def test_the_length_is_the_same_however_it_is_given(length: dict[str, int], tmp_path: Path) -> None:
    found: list[RunLength] = []

    class Model(BoringModel):
        def configure_optimizers(self) -> Any:
            found.append(run_length(self.trainer))
            return super().configure_optimizers()

    quiet: dict[str, Any] = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    Trainer(
        accelerator='cpu',
        default_root_dir=tmp_path,
        limit_train_batches=4,
        limit_val_batches=0,
        **quiet,
        **length,
    ).fit(Model())
    assert [(f.total, f.epochs) for f in found] == [(8, 2)]


@pytest.mark.parametrize('length', [{'max_time': '00:01:00:00'}, {'max_epochs': -1}], ids=str)
def test_a_run_without_a_length_is_refused_in_one_sentence(length: dict[str, Any], tmp_path: Path) -> None:
    class Model(BoringModel):
        def configure_optimizers(self) -> Any:
            return run_length(self.trainer)

    trainer = Trainer(accelerator='cpu', default_root_dir=tmp_path, logger=False, **length)
    with pytest.raises(ValueError, match=r'need the length of the run: give trainer\.max_steps'):
        trainer.fit(Model())
