"""Frames as slots: shared filters, any number, times instead of places in a list."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from explora_geo.models import PatchTokenizer, TemporalTokenizer, ViT

TIMES = torch.tensor([[[10, 0, 9], [12, 6, 10], [15, 11, 11]], [[9, 3, 8], [9, 4, 8], [20, 1, 23]]])


def build(**kwargs: Any) -> TemporalTokenizer:
    return TemporalTokenizer(32, **{'img_size': 16, 'patch_size': 8, **kwargs})


def test_every_frame_is_embedded_as_an_image_of_its_own() -> None:
    tokenizer, patch = build(), PatchTokenizer(32, 16, 8)
    patch.load_state_dict(tokenizer.state_dict())
    series = torch.randn(2, 4, 3, 16, 16)
    tokens, grid = tokenizer(series)
    assert tokens.shape == (2, 4, 4, 32) and grid == (2, 2)
    for i in range(4):
        assert_close(tokens[:, i], patch(series[:, i])[0][:, 0], atol=1e-6, rtol=1e-5)
        assert torch.equal(tokenizer.patchify(series)[:, i], patch.patchify(series[:, i])[:, 0])


def test_unpatchify_undoes_patchify() -> None:
    tokenizer = build(dynamic_img_size=True)
    series = torch.randn(2, 5, 3, 24, 40)
    assert torch.equal(tokenizer.unpatchify(tokenizer.patchify(series), (3, 5)), series)


def test_positions_are_spatial_codes_next_to_codes_of_year_month_and_hour() -> None:
    tokenizer = build()
    assert tokenizer.slot_dim == 12
    cls, patches = tokenizer.position(torch.randn(1, 5, 20), (2, 2), TIMES)
    assert cls.shape == (2, 1, 32) and patches.shape == (2, 3, 4, 32) and not cls[..., 20:].any()
    code = patches[1, 2, 0, 20:]
    expected = [torch.tensor([t, t / 100.0]) for t in (20.0, 1.0, 23.0)]
    assert_close(code, torch.cat([torch.cat([x.sin(), x.cos()]) for x in expected]), atol=1e-6, rtol=0)
    assert torch.equal(patches[0, 0, 1, 20:], patches[0, 0, 2, 20:])


@torch.no_grad()
def test_the_class_token_does_not_depend_on_the_order_of_the_frames() -> None:
    vit = ViT(build(), 32, 2, 2).eval()
    series, order = torch.randn(2, 3, 3, 16, 16), [2, 0, 1]
    one = vit(series, timestamps=TIMES)
    two = vit(series[:, order], timestamps=TIMES[:, order])
    assert_close(one.cls, two.cls, atol=1e-5, rtol=0)
    assert_close(one.patches[:, order], two.patches, atol=1e-5, rtol=0)
    assert not torch.allclose(vit(series, timestamps=TIMES + 1).cls, one.cls, atol=1e-3)


@torch.no_grad()
def test_other_numbers_of_frames_are_read() -> None:
    vit = ViT(build(num_frames=3), 32, 2, 2).eval()
    for count in (1, 2, 5):
        times = torch.randint(0, 20, (2, count, 3))
        assert vit(torch.randn(2, count, 3, 16, 16), timestamps=times).patches.shape == (2, count, 4, 32)


def test_time_codes_are_paper_wide() -> None:
    with torch.device('meta'):
        widths = {d: TemporalTokenizer(d, 16, 8).slot_dim for d in (768, 1024, 192, 416)}
    assert widths == {768: 384, 1024: 384, 192: 72, 416: 156}
    assert build().decoder_slot_codes(512, TIMES).shape == (2, 4, 192)


@pytest.mark.parametrize('times', [None, TIMES[0], TIMES[..., :2]])
def test_missing_times_are_asked_for(times: torch.Tensor | None) -> None:
    vit = ViT(build(), 32, 1, 2)
    with pytest.raises(ValueError, match=r'needs timestamps of shape \(B, T, 3\)'):
        vit(torch.randn(2, 3, 3, 16, 16), timestamps=times)


def test_times_of_another_number_of_frames_are_refused() -> None:
    with pytest.raises(ValueError, match='got 3 timestamps for 2 frames'):
        ViT(build(), 32, 1, 2)(torch.randn(2, 2, 3, 16, 16), timestamps=TIMES)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'num_frames': 0}, 'num_frames must be at least 1'),
        ({'slot_dim': 8}, 'slot_dim must be a positive multiple of 6'),
        ({'slot_dim': 36}, 'slot_dim must be at most the width 32'),
        ({'decoder_slot_dim': 4}, 'decoder_slot_dim must be a positive multiple of 6'),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**change)


def test_a_single_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r'shape \(B, T, 3, H, W\) with bands red, green, blue, got shape'):
        build()(torch.randn(2, 3, 16, 16))
