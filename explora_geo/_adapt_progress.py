"""What `adapt` does while it trains: shows where it is, and stops so that the run can go on."""

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar(Callback):
    """Steps of the whole run with the time left, the loss so far and images per second."""

    def __init__(self) -> None:
        """Initialize a ProgressBar."""
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn('{task.description}'))
        self._bar = Progress(TextColumn('steps'), *columns, transient=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the steps that were done before."""
        self._task = self._bar.add_task('', total=trainer.max_steps, completed=trainer.global_step)
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *unused: Any) -> None:
        """Show the step."""
        known = trainer.callback_metrics
        texts = [f'loss {known["train_loss"]:.3f}'] if 'train_loss' in known else []
        texts += [f'{known["images_per_s"]:.0f} images/s'] if 'images_per_s' in known else []
        self._bar.update(self._task, completed=trainer.global_step, description=', '.join(texts))

    def on_train_end(self, *unused: Any) -> None:
        """Take the bar away."""
        self._bar.stop()

    def on_exception(self, *unused: Any) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()


class CleanStop(Callback):
    """Ctrl-C ends a run behind the step that is under way and saves it; a second one ends it at once.

    Attributes:
        asked: Whether it came.
    """

    def __init__(self, checkpoint: Path) -> None:
        """Initialize a CleanStop.

        Args:
            checkpoint: File to save the run to.
        """
        self._file, self.asked = checkpoint, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take Ctrl-C over; whoever trains gives it back."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)

    def _note(self, *unused: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: Trainer, *unused: Any) -> None:
        """Save and stop, if that was asked for."""
        if self.asked:
            trainer.save_checkpoint(self._file)
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is done, so that nothing trains again if scoring is stopped."""
        if not self.asked:
            trainer.save_checkpoint(self._file)
