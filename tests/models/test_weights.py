"""The shipped source model is what its card says."""

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import timm
import torch
from torch import Tensor
from torchvision.models._api import WeightsEnum

from explora_geo.checkpoints import load_backbone, load_weights, read_state
from explora_geo.datasets import FolderDataset
from explora_geo.models import ViTTiny8_Weights, create_vit
from explora_geo.objectives import MAE

TILES = Path(__file__).parents[1] / 'data' / 'eurosat_rgb'
WEIGHTS = ViTTiny8_Weights.TINY_IMAGENET_MAE


@pytest.fixture(scope='module')
def stored() -> tuple[dict[str, Tensor], dict[str, str]]:
    return read_state(unquote(urlparse(WEIGHTS.url).path))


@pytest.fixture(scope='module')
def large_images() -> Tensor:
    dataset = FolderDataset(TILES / 'test')
    images = torch.stack([dataset[i]['image'] for i in range(0, 1000, 20)])
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None] * 255
    return (images - mean) / std


def test_it_is_an_entry_of_torchvisions_kind() -> None:
    assert issubclass(ViTTiny8_Weights, WeightsEnum)
    assert WEIGHTS.meta['model'] == 'vit_tiny_patch8_64' and WEIGHTS.meta['licence'] == 'MIT'
    assert WEIGHTS.meta['bands'] == ('red', 'green', 'blue')
    sample = {'image': torch.ones(1)}
    assert WEIGHTS.transforms(sample) is sample


def test_the_file_holds_timms_keys_and_a_decoder_in_half_precision(
    stored: tuple[dict[str, Tensor], dict[str, str]],
) -> None:
    state, _ = stored
    with torch.device('meta'):
        theirs = timm.create_model('vit_tiny_patch16_224', num_classes=0, img_size=64, patch_size=8)
    backbone = {k: v.shape for k, v in state.items() if not k.startswith('decoder.')}
    assert backbone == {k: v.shape for k, v in theirs.state_dict().items()}
    assert {v.dtype for v in state.values()} == {torch.float16}
    assert 'decoder.pred.weight' in state


@pytest.mark.parametrize('weights', [WEIGHTS, str(WEIGHTS)], ids=['entry', 'name'])
def test_it_loads_in_full_by_entry_and_by_name(weights: ViTTiny8_Weights | str) -> None:
    vit = create_vit('vit_tiny_patch8_64')
    loaded = load_weights(vit, weights)
    assert '150 of 150 tensors matched' in loaded.report
    with pytest.raises(ValueError, match='the model reads blue, green, red'):
        load_backbone('vit_tiny_patch8_64', weights, bands=('blue', 'green', 'red'))


def test_the_source_of_dinov2s_objective_loads_with_its_mask_token_and_without_heads() -> None:
    vit = create_vit('vit_tiny_patch8_64', mask_token=True)
    loaded = load_weights(vit, ViTTiny8_Weights.TINY_IMAGENET_DINOV2)
    assert '151 of 151 tensors matched' in loaded.report and not loaded.parts
    other = load_backbone('vit_tiny_patch8_64', WEIGHTS)
    assert not torch.allclose(vit.cls_token, other.cls_token)


@torch.no_grad()
def test_it_reconstructs_tiles_it_never_saw_better_than_a_mean(large_images: Tensor) -> None:
    vit = create_vit('vit_tiny_patch8_64')
    mae = MAE(vit)
    mae.load_pretrained(load_weights(vit, WEIGHTS).parts)
    loss = float(mae.eval()({'image': large_images}, 0)['loss_mae'])
    # Predicting the mean of each normalised patch costs 1.
    assert loss < 0.7


@torch.no_grad()
def test_its_heads_are_those_it_was_trained_with(large_images: Tensor) -> None:
    losses = {}
    for heads in (None, 4, 16):
        vit = create_vit('vit_tiny_patch8_64')
        mae = MAE(vit, decoder_num_heads=heads)
        mae.load_pretrained(load_weights(vit, WEIGHTS).parts)
        out = mae.eval().reconstruct(large_images, torch.rand(50, 64, generator=torch.manual_seed(0)))
        losses[heads] = float(mae.loss(large_images, out.pred, out.mask))
    assert losses[None] == losses[4] < losses[16]
