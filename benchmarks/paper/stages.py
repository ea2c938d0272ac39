"""Content-addressed stages: what a stage is made of names its folder, and a finished one is kept."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from explora_geo.checkpoints import atomic_path

# Raised when what a stage does or leaves behind changes.
_VERSION = 1
#: Seconds between looks of other processes at what the first one is doing.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        kind: `source`, `adapted`, `tuned` or `probed`.
        content: Everything its outcome depends on, JSON-ready.
        folder: Where its files are.
    """

    kind: str
    content: Mapping[str, Any]
    folder: Path

    @property
    def key(self) -> str:
        """Kind and hash of the content."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether it is done: its record is the last thing written."""
        return (self.folder / 'stage.json').is_file()

    @property
    def record(self) -> dict[str, Any]:
        """What was measured."""
        record: dict[str, Any] = json.loads((self.folder / 'stage.json').read_text())['record']
        return record

    @property
    def checkpoint(self) -> Path:
        """Where a run that is stopped goes on."""
        return self.folder / 'resume.ckpt'


def is_first_process() -> bool:
    """Whether this is the first, or only, process of a distributed run."""
    return int(getattr(rank_zero_only, 'rank', 0)) == 0


class Store:
    """The folder of all stages."""

    def __init__(self, folder: Path, resume: bool = True) -> None:
        """Initialize a Store.

        Args:
            folder: Where stages are kept.
            resume: Go on with unfinished stages at their last checkpoint instead of starting them anew.
        """
        self.folder, self.resume = folder, resume

    def stage(self, kind: str, content: Mapping[str, Any]) -> Stage:
        """The stage of this content, finished or not."""
        text = json.dumps([_VERSION, kind, content], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return Stage(kind, content, self.folder / f'{kind}-{key}')

    def run(
        self, stage: Stage, work: Callable[[Stage], Mapping[str, Any]], together: bool = False
    ) -> dict[str, Any]:
        """Run a stage unless it is finished.

        Args:
            stage: The stage.
            work: Does it and returns its record, JSON-ready.
            together: All processes of a distributed run take part; else the first works and the others wait
                for its record, in a folder that all of them see.

        Returns:
            The record.
        """
        if not stage.finished and (together or is_first_process()):
            stage.folder.mkdir(parents=True, exist_ok=True)
            if not self.resume:
                stage.checkpoint.unlink(missing_ok=True)
            record = work(stage)
            if is_first_process():
                content = {'kind': stage.kind, 'content': stage.content, 'record': record}
                with atomic_path(stage.folder / 'stage.json') as temporary:
                    temporary.write_text(json.dumps(content, indent=1))
                stage.checkpoint.unlink(missing_ok=True)
        while not stage.finished:
            time.sleep(_PATIENCE)
        return stage.record
