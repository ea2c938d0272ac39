"""Inputs, weights and outputs of the reference implementations; see data/golden/README.md."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from torch import Tensor


class Golden(NamedTuple):
    """One file: configuration, reference state dict, inputs and outputs."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    io: dict[str, Tensor]


@pytest.fixture(scope='session')
def golden() -> Callable[[str], Golden]:
    """Read a golden file; `EXPLORA_GEO_GOLDEN` names another folder of the same format."""
    default = Path(__file__).parents[1] / 'data' / 'golden'
    folder = Path(os.environ.get('EXPLORA_GEO_GOLDEN', default))
    manifest = json.loads((folder / 'manifest.json').read_text())

    def read(name: str) -> Golden:
        tensors = load_file(folder / f'{name}.safetensors')
        parts: dict[str, dict[str, Tensor]] = {'state': {}, 'io': {}}
        for key, value in tensors.items():
            part, _, rest = key.partition('.')
            parts[part][rest] = value.float() if part == 'state' else value
        return Golden(manifest[name]['config'], **parts)

    return read
