"""A run that is killed twenty times ends where one ends that never was, bit for bit."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.trainers import artifacts
from tests.trainers.steady_run import fit

STEPS = 70
KILLS = 20
WHERE = ('outside', 'outside', 'half written', 'before it takes its place')


def killed(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_saving(how: str, after: int) -> None:
    """Make this process die in its next save but *after*."""
    save, replace, count = artifacts.save, os.replace, [0]

    def torn(checkpoint: Any, path: Path) -> None:
        count[0] += 1
        if how == 'half written' and count[0] > after:
            save(checkpoint, path)
            os.truncate(path, path.stat().st_size // 2)
            killed()
        save(checkpoint, path)

    def late(source: Any, target: Any) -> None:
        if how != 'half written' and count[0] > after and str(target).endswith('.ckpt'):
            killed()
        replace(source, target)

    artifacts.save, os.replace = torn, late  # type: ignore[assignment]


def child(folder: Path, objective: str, how: str, after: int, told: Connection) -> None:
    """Train in a process of its own; steps go to a pipe, the final weights to a file."""
    os.dup2(told.fileno(), 1)
    if how not in ('outside', 'never'):
        die_while_saving(how, after)
    trained = fit(folder, objective, STEPS)
    torch.save(trained.state_dict(), folder / 'final.pt')


class Runs:
    """Starts training in processes that have imported everything already."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context('forkserver')
        self.context.set_forkserver_preload(['tests.trainers.steady_run'])

    def start(self, *args: Any) -> tuple[Any, Any]:
        reader, writer = self.context.Pipe(duplex=False)
        process = self.context.Process(target=child, args=(*args, writer))
        process.start()
        writer.close()
        return process, os.fdopen(os.dup(reader.fileno()))


def step_of(folder: Path) -> int:
    """Step of the last checkpoint, which must be complete; 0 without one."""
    file = folder / 'run' / 'last.ckpt'
    return int(torch.load(file, weights_only=True)['global_step']) if file.exists() else 0


def finish(folder: Path, objective: str, runs: Runs) -> dict[str, Tensor]:
    """Train to the end, and read the weights."""
    process, lines = runs.start(folder, objective, 'never', 0)
    lines.read()
    process.join(60)
    assert process.exitcode == 0
    return torch.load(folder / 'final.pt', weights_only=True)


@pytest.mark.group(name='kills')
@pytest.mark.parametrize('objective', ['mae', 'dinov2'])
def test_twenty_kills_leave_no_trace_in_the_weights(steady_folder: Path, objective: str) -> None:
    folder = steady_folder
    runs, dice = Runs(), random.Random(objective)
    expected = finish(folder, objective, runs)
    shutil.rmtree(folder / 'run')
    for number in range(KILLS):
        how, before = WHERE[number % len(WHERE)], step_of(folder)
        process, lines = runs.start(folder, objective, how, dice.randint(0, 2))
        steps = []
        goal = dice.randint(1, 3)
        for line in lines:
            if line.startswith('{'):
                steps.append(json.loads(line)['step'])
            if how == 'outside' and len(steps) == goal:
                time.sleep(dice.random() * 0.03)  # anywhere in a step, or in a save
                os.kill(process.pid, signal.SIGKILL)
                how = 'killed'
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f'kill {number}'
        assert steps[0] == before + 1, 'the run went on from the last complete step'
        assert step_of(folder) >= steps[-1] - 1, 'no more than the step in work is lost'
    assert step_of(folder) < STEPS
    found = finish(folder, objective, runs)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    left = [p.name for p in (folder / 'run').iterdir() if p.name.startswith('.last')]
    assert not left, 'half-written files are removed by the next save'
