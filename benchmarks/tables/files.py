"""YAML files of tables and scales: read, merge and turn into dataclasses."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """Read a YAML file of a kind; raise FileNotFoundError if it does not exist."""
    if not path.is_file():
        raise FileNotFoundError(f'{kind} {path} does not exist')
    return dict(yaml.safe_load(path.read_text(encoding='utf-8')))


def make(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass, turning lists into tuples."""
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ValueError(f'{where}: unknown keys {", ".join(sorted(unknown))}')
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where}: {error}') from error


def find(name: str, kind: str, known: Mapping[str, Any]) -> Any:
    """Look up a name; raise ValueError with the known names if it is missing."""
    if name not in known:
        raise ValueError(f'unknown {kind} {name!r}, expected one of {", ".join(known)}, or a YAML file')
    return known[name]


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested values with changes applied; a change to None removes the key."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = laid_over(merged[key], value)
        else:
            merged[key] = value
    return merged
