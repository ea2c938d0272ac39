"""The shipped source models are what their cards say."""

import importlib
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import timm
import torch
from torch import Tensor
from torchvision.models._api import WeightsEnum

from explora_geo.checkpoints import load_backbone, load_weights, read_state, remote
from explora_geo.datasets import FolderDataset
from explora_geo.evaluation import knn_accuracy
from explora_geo.models import ViTTiny8_Weights, builders, create_vit
from explora_geo.models.weights import (
    ViTSmall14_Weights,
    all_weights,
    entry_meta,
    entry_name,
    find_weights,
    search_weights,
    torchgeo_weights,
)
from explora_geo.objectives import MAE

TILES = Path(__file__).parents[1] / 'data' / 'eurosat_rgb'
WEIGHTS = ViTTiny8_Weights.TINY_IMAGENET_MAE
DEPTH6 = ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6


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
    assert WEIGHTS.meta['model'] == 'vit_tiny_patch8_64' and WEIGHTS.meta['license'] == 'MIT'
    assert WEIGHTS.meta['bands'] == ('red', 'green', 'blue')
    sample = {'image': torch.ones(1)}
    assert WEIGHTS.transforms(sample) is sample


def test_the_file_holds_timms_keys_and_a_decoder(stored: tuple[dict[str, Tensor], dict[str, str]]) -> None:
    state, _ = stored
    with torch.device('meta'):
        theirs = timm.create_model('vit_tiny_patch16_224', num_classes=0, img_size=64, patch_size=8)
    backbone = {k: v.shape for k, v in state.items() if not k.startswith('decoder.')}
    assert backbone == {k: v.shape for k, v in theirs.state_dict().items()}
    assert 'decoder.pred.weight' in state


@pytest.mark.parametrize('weights', [WEIGHTS, DEPTH6])
def test_the_files_are_as_small_as_int8_makes_them(weights: WeightsEnum) -> None:
    path = unquote(urlparse(weights.url).path)
    state, metadata = read_state(path)
    assert metadata['quantization'] == 'int8-rows'
    assert Path(path).stat().st_size < 1.05 * sum(v.numel() for v in state.values())


@pytest.mark.parametrize('weights', [WEIGHTS, str(WEIGHTS)], ids=['entry', 'name'])
def test_it_loads_in_full_by_entry_and_by_name(weights: ViTTiny8_Weights | str) -> None:
    vit = create_vit('vit_tiny_patch8_64')
    loaded = load_weights(vit, weights)
    assert '150 of 150 tensors matched' in loaded.report
    with pytest.raises(ValueError, match='but the model expects blue, green, red'):
        load_backbone('vit_tiny_patch8_64', weights, bands=('blue', 'green', 'red'))


def test_six_blocks_of_dinov2_load_into_timms_model_and_give_its_features() -> None:
    ours = load_backbone(DEPTH6.meta['model'], DEPTH6, img_size=56)
    theirs = timm.create_model('vit_small_patch14_dinov2', depth=6, img_size=56, num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        tokens = theirs.forward_features(image)
        features = ours(image)
    torch.testing.assert_close(features.patches[:, 0], tokens[:, 1:], atol=1e-4, rtol=1e-4)
    with_mask = create_vit(DEPTH6.meta['model'], img_size=56, mask_token=True)
    assert 'newly initialized: mask_token' in load_weights(with_mask, DEPTH6).report


@pytest.mark.slow
@torch.no_grad()
def test_six_blocks_of_dinov2_know_land_cover() -> None:
    datasets = [FolderDataset(TILES / part) for part in ('train', 'test')]
    vit = load_backbone(DEPTH6.meta['model'], DEPTH6, img_size=112)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None] * 255
    found = []
    for dataset in datasets:
        samples = [dataset[i] for i in range(0, len(dataset), len(dataset) // 150)]
        images = torch.stack([(s['image'] - mean) / std for s in samples])
        images = torch.nn.functional.interpolate(images, size=112, mode='bicubic')
        found.append((MAE.pool(vit(images)).numpy(), torch.stack([s['label'] for s in samples]).numpy()))
    (train, labels), (test, test_labels) = found
    # Chance is 0.10; the features of random weights reach about 0.4.
    assert knn_accuracy(train, labels, test, test_labels, k=5) > 0.65


@torch.no_grad()
def test_it_reconstructs_tiles_it_never_saw_better_than_a_mean(large_images: Tensor) -> None:
    vit = create_vit('vit_tiny_patch8_64')
    mae = MAE(vit)
    mae.load_pretrained(load_weights(vit, WEIGHTS).parts)
    loss = float(mae.eval()({'image': large_images}, 0)['loss_mae'])
    # Predicting the mean of each normalized patch costs 1.
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


@pytest.mark.parametrize(
    ('name', 'bands', 'mean', 'std'),
    [
        ('ViTSmall16_Weights.SENTINEL2_ALL_DINO', ('B01', 'B8A', 'B12'), 0, 10_000),
        ('torchgeo/ViTBase16_Weights.SENTINEL2_ALL_FGMAE', ('B01', 'B8A', 'B12'), 0, 10_000),
        ('ViTSmall14_DINOv2_Weights.SENTINEL2_ALL_SOFTCON', ('B01', 'B8A', 'B12'), 1612.9, 791.0),
        ('ViTHuge14_Weights.SENTINEL1_GRD_MAE', ('VV', 'VH'), -12.59, 5.26),
        ('ViTSmall16_Weights.LANDSAT_OLI_SR_MOCO', ('SR_B1', 'SR_B7'), 0, 255),
        ('ViTSmall16_Weights.SENTINEL1_GRD_CLOSP', ('VV', 'VH'), 0, 1),
    ],
)
def test_torchgeos_entries_bring_bands_and_normalization(
    name: str,
    bands: tuple[str, ...],
    mean: float,
    std: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = find_weights(name)
    assert entry is not None
    meta = entry_meta(entry)
    with torch.device('meta'):
        plan = create_vit(meta['model'], bands=meta['bands'], img_size=224)
    assert set(bands) <= set(meta['bands']) and len(plan.patch_embed.bands) == entry.meta['in_chans']
    # The file that TorchGeo's model saves, in the cache where TorchGeo keeps it
    size, patch, blocks = (
        meta['model'].split('_')[1],
        plan.patch_embed.patch_size,
        {'depth': 2, 'embed_dim': 48},
    )
    dinov2 = 'dinov2' in meta['model']
    theirs = timm.create_model(
        meta['model'], img_size=224, in_chans=len(meta['bands']), num_heads=3, **blocks
    ).eval()
    monkeypatch.setitem(builders._SIZES, size, (48, 2, 3))
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    path = tmp_path / 'checkpoints' / Path(urlparse(entry.url).path).name
    path.parent.mkdir()
    torch.save(theirs.state_dict(), path)
    if 'sha256' in meta:
        with pytest.raises(ValueError, match=rf'expected {meta["sha256"]}; remove the file'):
            load_backbone(None, name)
        monkeypatch.setattr(remote, 'file_sha256', lambda path: meta['sha256'] + 56 * '0')
    ours = load_backbone(None, name)
    assert ours.patch_embed.img_size == (224 if not dinov2 else 16 * patch)
    assert ours.normalization is not None and ours.base == entry_name(entry)
    assert (ours.normalization.mean[0], ours.normalization.std[0]) == (mean, std)
    image = torch.randn(1, len(meta['bands']), 224, 224)
    with torch.no_grad():
        expected = theirs.forward_features(image)[:, 0]
        torch.testing.assert_close(ours(image).cls, expected, atol=1e-4, rtol=1e-4)
        assert entry.transforms is not None
        raw = image * 100
        for step in entry.transforms:
            if hasattr(step, 'mean'):
                given = torch.tensor([ours.normalization.mean, ours.normalization.std])[..., None, None]
                torch.testing.assert_close(step(raw.clone()), (raw - given[0]) / given[1])


def test_ours_win_and_torchgeo_before_a_name_means_theirs() -> None:
    assert entry_name(find_weights('ViTBase16_Weights.IMAGENET_MAE')) == 'ViTBase16_Weights.IMAGENET_MAE'
    theirs = find_weights('ViTBase16_Weights.SENTINEL2_ALL_MAE')
    assert theirs is find_weights('torchgeo/ViTBase16_Weights.SENTINEL2_ALL_MAE')
    assert entry_name(theirs) == 'torchgeo/ViTBase16_Weights.SENTINEL2_ALL_MAE'
    with pytest.raises(
        ValueError, match=r'unknown weights torchgeo/ViTBase16_Weights\.IMAGENET_MAE, nearest are torchgeo/'
    ):
        find_weights('torchgeo/ViTBase16_Weights.IMAGENET_MAE')
    with pytest.raises(ValueError, match=r'nearest are .*ViTSmall16_Weights\.SENTINEL2_ALL_DINO'):
        find_weights('ViTSmall16_Weights.SENTINEL2_DINO')
    assert find_weights('runs/ViTTiny8_Weights.safetensors') is None


def test_weights_are_searched_by_all_that_they_state() -> None:
    names = {name: entry_name(entry) for name, entry in all_weights().items()}
    assert len(search_weights()) == len(names) + len(torchgeo_weights())
    assert set(search_weights('huge imagenet')) == {n for n in names if n.startswith('ViTHuge14_Weights.')}
    found = search_weights('SSL4EO-S12 sentinel1 softcon')
    assert found and all(n.startswith('torchgeo/') and 'SOFTCON' in n for n in found)
    assert all('license' in m and 'decoder' in m for m in search_weights().values())


def test_the_huge_model_is_for_the_user_to_get() -> None:
    entry = all_weights()['ViTHuge14_Weights.IMAGENET_MAE']
    assert entry.meta['license'] == 'CC-BY-NC-4.0' and entry.url.startswith('https://')
    with torch.device('meta'):
        assert sum(p.numel() for p in create_vit(entry.meta['model']).parameters()) > 6e8


def test_entries_of_torchgeo_for_other_models_are_left_as_they_are() -> None:
    entry = importlib.import_module('torchgeo.models').ResNet18_Weights.SENTINEL2_ALL_MOCO
    assert entry_meta(entry) == entry.meta and entry_name(entry) == str(entry)
