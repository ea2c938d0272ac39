"""Position codes: MAE's formula and DINOv2's resampling."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.models.position import resample_position, sincos_1d, sincos_2d


@pytest.mark.parametrize(('dim', 'grid'), [(8, (3, 3)), (48, (2, 5)), (1024, (14, 14))])
def test_every_code_is_sine_and_cosine_of_column_then_row(dim: int, grid: tuple[int, int]) -> None:
    codes = sincos_2d(dim, grid)
    assert codes.shape == (grid[0] * grid[1], dim)
    quarter = dim // 4
    for row, column in [(0, 0), (1, 1), (grid[0] - 1, grid[1] - 1)]:
        frequencies = [10000 ** (-i / quarter) for i in range(quarter)]
        expected = [
            function(coordinate * f)
            for coordinate in (column, row)
            for function in (math.sin, math.cos)
            for f in frequencies
        ]
        assert_close(codes[row * grid[1] + column], torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_width_not_divisible_by_4_is_refused() -> None:
    with pytest.raises(ValueError, match='divisible by 4, got dim=6'):
        sincos_2d(6, (2, 2))


def test_equal_grids_return_the_stored_codes_themselves() -> None:
    stored = torch.randn(1, 12, 8)
    assert resample_position(stored, (3, 4), (3, 4)) is stored


@pytest.mark.parametrize('target', [(2, 2), (7, 7), (37, 37), (3, 9), (16, 16)])
def test_resampling_is_dinov2s_bicubic_with_offset(target: tuple[int, int]) -> None:
    stored = torch.randn(1, 16, 8)
    found = resample_position(stored, (4, 4), target)
    # As in the reference's interpolate_pos_encoding: the scale factors carry the offset.
    grid = stored.reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    scale = ((target[0] + 0.1) / 4, (target[1] + 0.1) / 4)
    expected = F.interpolate(grid, scale_factor=scale, mode='bicubic', antialias=False)
    assert expected.shape[-2:] == target
    assert_close(found, expected.permute(0, 2, 3, 1).reshape(1, -1, 8))


def test_resampling_keeps_constants_and_the_type() -> None:
    stored = torch.full((1, 9, 4), 0.5, dtype=torch.float16)
    found = resample_position(stored, (3, 3), (5, 6))
    assert found.dtype == torch.float16 and found.shape == (1, 30, 4)
    assert_close(found, torch.full_like(found, 0.5))


@pytest.mark.parametrize('old', list(range(1, 38, 4)))
def test_every_pair_of_grids_gives_the_wanted_size(old: int) -> None:
    stored = torch.randn(1, old * old, 1)
    for new in range(1, 40):
        assert resample_position(stored, (old, old), (new, new)).shape == (1, new * new, 1)


def test_1d_codes_are_sines_then_cosines_of_falling_frequency() -> None:
    code = sincos_1d(8, torch.tensor([[0.0, 3.0]]))
    assert code.shape == (1, 2, 8)
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert_close(code[0, 1], torch.cat([(3 * frequencies).sin(), (3 * frequencies).cos()]))
    assert torch.equal(code[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4))


def test_an_odd_width_has_no_1d_code() -> None:
    with pytest.raises(ValueError, match='divisible by 2, got dim=7'):
        sincos_1d(7, torch.zeros(1))
