"""Content-addressed stages: a hash of its inputs names a stage's folder, and finished stages are reused.

A ledger beside the results stores the records of finished stages, so a table can resume without its folder
of stages; a stage whose files are needed then runs again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from explora_geo.checkpoints import atomic_path

from . import records

# Increase it when the work or the files of a stage change.
_VERSION = 1
#: Seconds between checks by other processes on the first one.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    kind: str  # `source`, `adapted`, `tuned` or `probed`
    content: Mapping[str, Any]  # everything its outcome depends on, JSON-ready
    folder: Path  # folder of its files, named by kind and hash of the content
    kept: Mapping[str, Any] | None = None  # its record in the ledger

    @property
    def key(self) -> str:
        """Kind and hash of the content."""
        return self.folder.name

    @property
    def made(self) -> bool:
        """Whether its files exist: the record is written last."""
        return (self.folder / 'stage.json').is_file()

    @property
    def record(self) -> dict[str, Any]:
        """Measurements of the stage."""
        if not self.made and self.kept is not None:
            return dict(self.kept)
        record: dict[str, Any] = json.loads((self.folder / 'stage.json').read_text())['record']
        return record

    @property
    def checkpoint(self) -> Path:
        """Checkpoint from which an interrupted run resumes."""
        return self.folder / 'resume.ckpt'


_Work = Callable[[Stage], Mapping[str, Any]]


def is_first_process() -> bool:
    """Return whether this is the first, or only, process of a distributed run."""
    return int(getattr(rank_zero_only, 'rank', 0)) == 0


class Store:
    """The folder of all stages."""

    def __init__(self, folder: Path, resume: bool = True, ledger: Path | None = None) -> None:
        """Initialize a Store."""
        self.folder, self.resume, self.ledger = folder, resume, ledger
        lines = [] if ledger is None else records.read(ledger)
        self._kept = {line['stage']: line['record'] for line in lines}
        self._works: dict[str, tuple[_Work, bool]] = {}

    def stage(self, kind: str, content: Mapping[str, Any]) -> Stage:
        """Return the stage of this content, finished or not."""
        text = json.dumps([_VERSION, kind, content], sort_keys=True)
        name = f'{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}'
        return Stage(kind, content, self.folder / name, self._kept.get(name))

    def run(
        self, kind: str, content: Mapping[str, Any], work: _Work, together: bool = False, needs: Any = None
    ) -> Stage:
        """Run an unfinished stage, in all processes *together* or only the first; make *needs* before it."""
        stage = self.stage(kind, content)
        if not stage.made:
            self._works[stage.key] = work, together
        if not stage.made and stage.kept is None:
            if needs is not None:
                self.make(needs)
            self.make(stage)
        return stage

    def make(self, stage: Stage) -> None:
        """Ensure, after `run`, that the files of a stage exist; run it again if only the ledger has it."""
        # Works hold images, so drop each as soon as possible.
        work, together = self._works.pop(stage.key, (None, False))
        if work is not None and not stage.made and (together or is_first_process()):
            stage.folder.mkdir(parents=True, exist_ok=True)
            if not self.resume:
                stage.checkpoint.unlink(missing_ok=True)
            record = work(stage)
            if is_first_process():
                content = {'kind': stage.kind, 'content': stage.content, 'record': record}
                with atomic_path(stage.folder / 'stage.json') as temporary:
                    temporary.write_text(json.dumps(content, indent=1))
                stage.checkpoint.unlink(missing_ok=True)
                if self.ledger is not None and stage.kept is None:
                    records.append(self.ledger, {'stage': stage.key, 'record': record})
        while not stage.made:
            time.sleep(_PATIENCE)
