"""Ways to run crops of two sizes give the same tokens."""

from pathlib import Path

import pytest
import torch

from benchmarks import packing
from explora_geo.models import create_vit


@pytest.mark.parametrize('way', ['one matrix product, attention by size', 'rows with a block-diagonal mask'])
def test_a_way_gives_the_tokens_of_one_call_per_size(small_names: None, way: str) -> None:
    vit = create_vit('vit_tiny_patch8_32')
    sizes = [torch.randn(6, 17, 32), torch.randn(12, 5, 32)]
    expected = packing.separate(vit, sizes)
    for a, b in zip(packing.WAYS[way](vit, sizes), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_table_says_what_ran_and_what_did_not(
    small_names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> list[torch.Tensor]:
        raise NotImplementedError('not here\nat all')

    ways = {'one call per crop size': packing.separate, 'nested tensors': broken}
    monkeypatch.setattr(packing, 'WAYS', ways)
    for _ in range(2):
        path = packing.measure_packing(tmp_path, 'vit_tiny_patch8_32', 2, 32, 16, 3, repeats=1)
    text = path.read_text()
    assert text.count('| one call per crop size | 0.') == 2 and text.count('# Packing crops') == 1
    assert 'does not run: not here | -' in text and '3 local ones of 16 px' in text
