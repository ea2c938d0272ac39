"""Training in several processes, each started from one that has imported everything already."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

START: Any = multiprocessing.get_context('forkserver')
START.set_forkserver_preload(['tests.trainers.steady_run'])


def _as_rank(work: Callable[..., Any], rank: int, world: int, port: int, file: Path, args: Any) -> None:
    names = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': world, 'LOCAL_WORLD_SIZE': world}
    names |= {'GROUP_RANK': 0, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'TORCHELASTIC_RUN_ID': 'test'}
    os.environ.update({k: str(v) for k, v in names.items()})
    torch.set_num_threads(1)
    torch.save(work(*args), file)


def start(work: Callable[..., Any], folder: Path, *args: Any, world: int = 2) -> list[Any]:
    """Start a function in as many processes as torchrun would, and return them."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = [
        START.Process(target=_as_rank, args=(work, rank, world, port, folder / f'{rank}.pt', args))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def run(work: Callable[..., Any], folder: Path, *args: Any, world: int = 2) -> list[Any]:
    """What a function returns in each process."""
    processes = start(work, folder, *args, world=world)
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(world)]
