"""Who is compared, by objective."""

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from rich.console import Console

from . import others, ours
from .setting import Contenders

T = TypeVar('T')

CONTENDERS: dict[str, Contenders] = {
    'mae': {**ours.MAE_STEPS, **others.MAE_STEPS},
    'dinov2': {**ours.DINOV2_STEPS, **others.DINOV2_STEPS},
}


def find(objective: str, compiled: bool = False) -> Contenders:
    """Everybody by name, with those that compile first if asked for.

    Raises:
        ValueError: If the objective is unknown.
    """
    if objective not in CONTENDERS:
        raise ValueError(f'objective must be one of {", ".join(CONTENDERS)}, got {objective!r}')
    return {**CONTENDERS[objective], **(ours.COMPILED_STEPS[objective] if compiled else {})}


def for_each(
    names: Iterable[str], work: Callable[[str], T], only: str = ''
) -> tuple[dict[str, T], dict[str, str]]:
    """Do something for every contender that is installed and able.

    Args:
        names: Contenders; the first of them, to which the others are compared, is always one of those done.
        work: What to do for a contender, by name; a `ValueError`, or an `ImportError` of
            what it needs, says that it cannot.
        only: Only contenders in whose name this regular expression is found.

    Returns:
        What came of it by name, and why others are missing.
    """
    found: dict[str, T] = {}
    absent: dict[str, str] = {}
    for position, name in enumerate(names):
        if position and not re.search(only, name):
            continue
        if lacking := others.missing(name):
            absent[name] = f'{lacking} is not installed'
            continue
        Console().print(name, markup=False)
        try:
            found[name] = work(name)
        except (ImportError, ValueError) as error:
            absent[name] = str(error)
    return found, absent
