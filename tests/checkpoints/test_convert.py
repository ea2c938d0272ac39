"""Foreign layouts become ours."""

import torch
from torch import Tensor

from explora_geo.checkpoints.convert import convert, from_mae, recognise

State = dict[str, Tensor]


def test_layouts_are_recognised_by_their_own_keys(encoder_state: State, mae_state: State) -> None:
    assert recognise(mae_state) == 'mae'
    assert recognise(encoder_state) == 'timm'
    assert recognise({**encoder_state, 'mask_token': torch.zeros(1, 32)}) == 'dinov2'
    assert recognise(from_mae(mae_state)) == 'explora_geo'


def test_a_full_mae_file_splits_into_backbone_and_decoder(encoder_state: State, mae_state: State) -> None:
    backbone, parts, layout = convert(mae_state)
    assert layout == 'mae'
    assert list(backbone) == list(encoder_state)
    assert all(backbone[k] is mae_state[k] for k in backbone)
    assert {k.split('.')[1] for k in parts} == {
        *('mask_token', 'pos_embed', 'embed', 'blocks', 'norm', 'pred')
    }
    assert torch.equal(parts['decoder.mask_token'], mae_state['mask_token'])
    assert torch.equal(parts['decoder.blocks.0.mlp.fc1.bias'], mae_state['decoder_blocks.0.mlp.fc1.bias'])


def test_prediction_rows_are_reordered_from_pixel_colour_to_colour_pixel(mae_state: State) -> None:
    parts = convert(mae_state)[1]
    for name in ('weight', 'bias'):
        theirs, ours = mae_state[f'decoder_pred.{name}'], parts[f'decoder.pred.{name}']
        for p, q, c in [(0, 0, 0), (0, 0, 2), (3, 5, 1), (7, 7, 2)]:
            assert torch.equal(ours[c * 64 + p * 8 + q], theirs[(p * 8 + q) * 3 + c])


def test_converting_twice_changes_nothing(mae_state: State) -> None:
    first = convert(mae_state)
    again = convert({**first[0], **first[1]})
    assert again[2] == 'explora_geo'
    for before, after in zip(first[:2], again[:2], strict=True):
        assert list(before) == list(after)
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_input_is_not_changed(mae_state: State) -> None:
    before = {k: v.clone() for k, v in mae_state.items()}
    convert(mae_state)
    assert list(before) == list(mae_state)
    assert all(torch.equal(before[k], mae_state[k]) for k in before)
