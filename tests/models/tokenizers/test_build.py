"""Tokenizers by name."""

import pytest

from explora_geo.models import GroupChannelTokenizer, PatchTokenizer, TemporalTokenizer, create_vit
from explora_geo.models.tokenizers import TOKENIZERS, build_tokenizer

GROUPS = [['red', 'nir'], ['swir1']]


def test_the_names_build_their_classes() -> None:
    classes = {k: type(build_tokenizer(k, 64, 16, 8)) for k in TOKENIZERS}
    assert classes == {
        'patch': PatchTokenizer,
        'group-channel': GroupChannelTokenizer,
        'temporal': TemporalTokenizer,
    }


def test_groups_say_the_bands() -> None:
    tokenizer = build_tokenizer('group-channel', 64, 16, 8, options={'channel_groups': GROUPS})
    assert tokenizer.bands == ('red', 'nir', 'swir1')
    bands = ('swir1', 'nir', 'red')
    tokenizer = build_tokenizer('group-channel', 64, 16, 8, bands, options={'channel_groups': GROUPS})
    assert tokenizer.bands == bands


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('patch', {}),
        ('group-channel', {'channel_groups': GROUPS, 'slot_dim': 8, 'satmae_band_pairing': True}),
        ('temporal', {'num_frames': 5, 'slot_dim': 12, 'decoder_slot_dim': 6}),
    ],
)
def test_options_rebuild_the_tokenizer(kind: str, options: dict[str, object]) -> None:
    vit = create_vit('vit_tiny_patch8_16', tokenizer=kind, tokenizer_options=options)
    assert vit.patch_embed.options == options
    again = create_vit('vit_tiny_patch8_16', tokenizer=kind, tokenizer_options=vit.patch_embed.options)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in vit.state_dict().items()
    }


@pytest.mark.parametrize(
    ('kind', 'options', 'sentence'),
    [
        ('patches', {}, "unknown tokenizer 'patches', expected one of patch, group-channel, temporal"),
        ('patch', {'num_frames': 3}, "patch has no option 'num_frames', available options: none"),
        (
            'temporal',
            {'frames': 3},
            "no option 'frames', available options: num_frames, slot_dim, decoder_slot_dim",
        ),
    ],
)
def test_unknown_names_are_refused(kind: str, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_tokenizer(kind, 64, 16, 8, options=options)
