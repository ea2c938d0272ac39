"""A way to see the batches a data module hands to a task."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer


class Recorder(LightningModule):
    """A model that keeps the batches it is given, by stage."""

    def __init__(self) -> None:
        """Initialize a new Recorder instance."""
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.batches: dict[str, list[dict[str, Any]]] = {'train': [], 'val': [], 'predict': []}

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        """Keep a training batch."""
        self.batches['train'].append(batch)
        loss: torch.Tensor = self.layer(torch.ones(1, 1)).sum()
        return loss

    def validation_step(self, batch: dict[str, Any]) -> None:
        """Keep a validation batch."""
        self.batches['val'].append(batch)

    def predict_step(self, batch: dict[str, Any]) -> None:
        """Keep a batch to predict on."""
        self.batches['predict'].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make an optimizer, as training needs one."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def record() -> Callable[..., dict[str, list[dict[str, Any]]]]:
    """Run a trainer on a data module and return the batches by stage."""

    def run(
        datamodule: LightningDataModule, verb: Literal['fit', 'predict'] = 'fit', **kwargs: Any
    ) -> dict[str, list[dict[str, Any]]]:
        model = Recorder()
        trainer = Trainer(
            accelerator='cpu',
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **{'max_epochs': 1, **kwargs},
        )
        getattr(trainer, verb)(model, datamodule=datamodule)
        return model.batches

    return run
