"""Lightning's checkpoints, written in one piece or not at all."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import Tensor, save

from explora_geo.checkpoints.files import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file of before and takes its place when all is on the disk.

    Lightning's own way holds a whole checkpoint in memory and moves it from the system's temporary folder,
    which is a copy, and can be cut off, where that folder is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What Lightning keeps.
            path: File to write; addresses of remote storage are left to Lightning.
            storage_options: As in Lightning, which refuses any.

        Raises:
            OSError: If there is no room for it; what was there before stays.
        """
        if '://' in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        for left in path.parent.glob(f'.{path.name}.*'):
            left.unlink(missing_ok=True)  # by a run that was killed while it wrote
        with atomic_path(path, _bytes(checkpoint)) as temporary:
            save(checkpoint, temporary)


def install_checkpoint_io(trainer: Trainer) -> None:
    """Have a trainer write its checkpoints this way, unless it was given another."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()


def _bytes(content: Any) -> int:
    """Bytes of all tensors in a checkpoint."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        return sum(map(_bytes, content.values()))
    return sum(map(_bytes, content)) if isinstance(content, list | tuple) else 0
