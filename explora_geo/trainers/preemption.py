"""What a run does when the system wants its machine back: finish the step, save, leave."""

import logging
import signal
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from explora_geo.trainers.folder import run_folder

logger = logging.getLogger(__name__)


class Preemption(Callback):
    """Saves `last.ckpt` when a run is terminated, and lets Slurm's requeue signal wait for the step.

    Lightning stops a run at the end of the step in which SIGTERM came; this saves it. The signal by which
    Slurm announces the end of a job makes Lightning save at once, amid a step that no run can go on from:
    here it waits until the step is done, in all processes.

    Attributes:
        saved: The file that was saved, or None.
    """

    def __init__(self) -> None:
        """Initialize a Preemption."""
        self.saved: str | None = None
        self._handler: Any = None
        self._pending: tuple[Any, ...] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the requeue signal."""
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            number = environment.requeue_signal or signal.SIGUSR1
            self._handler = signal.getsignal(number)
            signal.signal(number, self._note)

    def _note(self, *received: Any) -> None:
        self._pending = received

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Do what the requeue signal asks for, once all processes know of it and a step is complete."""
        if self._handler is None or trainer.fit_loop._should_accumulate():
            return
        pending = trainer.strategy.reduce_boolean_decision(self._pending is not None, all=False)
        if pending:
            received, self._pending = self._pending or (None, None), None
            self._handler(*received)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a run that is terminated: where its checkpoints lie, else in its folder."""
        if not isinstance(exception, SIGTERMException) or not trainer.global_step:
            return
        keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoint)), None)
        folder = getattr(keeper, 'dirpath', None) or run_folder(trainer)
        self.saved = f'{folder}/last.ckpt'
        trainer.save_checkpoint(self.saved)
        logger.warning(
            'the run was told to stop and is saved at step %d: go on with --ckpt_path %s',
            trainer.global_step,
            self.saved,
        )
