"""The measurement of a map's memory."""

import pytest

from benchmarks.map_memory import measure


def test_memory_of_a_small_scene_is_measured(small_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(96, classes=3, model='vit_tiny_patch8_32')
    assert found['map'] == '96 x 96' and 0 < found['peak_gib'] < 64
