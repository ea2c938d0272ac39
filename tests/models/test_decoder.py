"""MAE's decoder."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.models import MAEDecoder, ViT
from explora_geo.models.position import sincos_2d

Build = Callable[..., ViT]


def decoder_of(vit: ViT) -> MAEDecoder:
    return MAEDecoder(vit.patch_embed, vit.embed_dim, embed_dim=24, depth=2, num_heads=2)


def test_the_published_decoder_has_its_published_size() -> None:
    from explora_geo.models import create_vit

    with torch.device('meta'):
        vit = create_vit('vit_large_patch16_224')
        decoder = MAEDecoder(vit.patch_embed, vit.embed_dim)
    count = sum(p.numel() for p in decoder.parameters())
    blocks = 8 * (12 * 512**2 + 13 * 512)
    assert count == 1024 * 512 + 512 + 512 + blocks + 2 * 512 + 512 * 768 + 768


def test_the_tokenizer_is_not_registered_twice(build_vit: Build) -> None:
    vit = build_vit()
    names = [n for n, _ in decoder_of(vit).named_parameters()]
    assert {n.split('.')[0] for n in names} == {'embed', 'mask_token', 'blocks', 'norm', 'pred'}


@torch.no_grad()
def test_the_order_of_the_kept_tokens_does_not_matter(build_vit: Build, images: Tensor) -> None:
    vit = build_vit().eval()
    decoder = decoder_of(vit).eval()
    keep = torch.tensor([[3, 11, 0, 7]]).expand(len(images), -1)
    order = torch.tensor([2, 0, 3, 1])
    predictions = []
    for chosen in (keep, keep[:, order]):
        features = vit(images, keep=chosen)
        predictions.append(decoder(features.cls, features.patches, chosen, (4, 4), 1))
    assert predictions[0].shape == (8, 1, 16, 192)
    assert_close(predictions[0], predictions[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_positions_of_another_grid_are_computed_anew(build_vit: Build) -> None:
    decoder = decoder_of(build_vit()).eval()
    cls, kept, keep = torch.randn(1, 32), torch.randn(1, 2, 32), torch.tensor([[0, 5]])
    computed = [decoder(cls, kept, keep, grid, 1) for grid in ((4, 4), (2, 3))]
    exact = torch.cat([torch.zeros(1, 24), sincos_2d(24, (4, 4))])[None]
    decoder.pos_embed = exact  # stored codes that are the computed ones change nothing
    assert torch.equal(decoder(cls, kept, keep, (4, 4), 1), computed[0])
    decoder.pos_embed = exact + 1
    assert not torch.allclose(decoder(cls, kept, keep, (4, 4), 1), computed[0])
    assert torch.equal(decoder(cls, kept, keep, (2, 3), 1), computed[1])


def test_a_decoder_can_be_built_to_be_counted_only(build_vit: Build) -> None:
    with torch.device('meta'):
        assert all(p.is_meta for p in decoder_of(build_vit()).parameters())
