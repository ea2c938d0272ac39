"""Where a run leaves its files."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: Trainer) -> Path:
    """The logger's folder, or the trainer's root folder without one.

    `Trainer.log_dir` says the same, but stalls for ever where only the first process asks.
    """
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir)
    versioned = isinstance(logger, TensorBoardLogger | CSVLogger)
    folder = logger.log_dir if versioned else logger.save_dir
    return Path(folder or trainer.default_root_dir)
