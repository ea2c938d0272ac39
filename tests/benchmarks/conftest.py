"""Benchmarks are no part of the product: their tests run on the first Python only."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands below this folder as slow, but for what is in a group."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker('group'):
            item.add_marker('slow')
