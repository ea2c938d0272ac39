"""The two forms of attention, side by side."""

import pytest

from benchmarks.speed import attention


def test_a_page_has_a_line_for_each_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, 'TOKENS', (5, 9))
    *_, few, more = attention.main(seconds=0.001).splitlines()
    assert [line.split(' | ')[0] for line in (few, more)] == ['| 5', '| 9']
    assert all(float(cell) > 0 for cell in more.strip('| ').split(' | '))
