"""Adapter files: small, tied to their base, refused when damaged, merged into plain models."""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_names
from explora_geo.checkpoints import (
    load_backbone,
    load_weights,
    merge_adapter,
    read_adapter,
    read_state,
    read_weights,
    save_adapter,
    scale_adapter,
    write_state,
)
from explora_geo.checkpoints.adapter import frozen_sha256, put_adapter
from explora_geo.models import ViT, create_vit
from explora_geo.models.normalization import Normalization

MODEL = 'vit_tiny_patch8_32'
CONFIG = ExPLoRAConfig.parse('[L]-r4', alpha=2)


@pytest.fixture
def adapted(base_file: Path) -> ViT:
    """A backbone whose every trainable number has moved."""
    vit = create_vit(MODEL)
    load_weights(vit, base_file)
    explora(vit, CONFIG)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return vit.eval()


@pytest.fixture
def adapter(adapted: ViT, tmp_path: Path) -> Path:
    save_adapter(tmp_path / 'adapter.safetensors', adapted, MODEL, CONFIG)
    return tmp_path / 'adapter.safetensors'


@torch.no_grad()
def test_a_file_of_half_the_size_holds_the_same_values_rounded(
    adapted: ViT, adapter: Path, base_file: Path, tmp_path: Path
) -> None:
    small = tmp_path / 'small.safetensors'
    save_adapter(small, adapted, MODEL, CONFIG, dtype=torch.bfloat16)
    values = sum(tensor.nbytes for tensor in read_adapter(adapter)[1].values())
    assert abs(adapter.stat().st_size - small.stat().st_size - values // 2) < 64  # the headers' padding
    vit = create_vit(MODEL)
    load_weights(vit, base_file)
    put_adapter(vit, *read_adapter(small), small)
    names = set(trainable_names(adapted))
    for name, value in vit.state_dict().items():
        original = adapted.state_dict()[name]
        assert value.dtype == torch.float32
        assert_close(value, original.bfloat16().float() if name in names else original, rtol=0, atol=0)


@torch.no_grad()
def test_base_and_adapter_are_the_adapted_model(
    adapted: ViT, adapter: Path, base_file: Path, images: Tensor
) -> None:
    vit = create_vit(MODEL)
    load_weights(vit, base_file)
    header, state = read_adapter(adapter)
    put_adapter(vit, header, state, adapter)
    assert header.explora_config == CONFIG and header.bands == ('red', 'green', 'blue')
    assert torch.equal(vit.eval()(images).cls, adapted(images).cls)
    merged = load_backbone(MODEL, base_file, adapter)
    assert not any('lora' in k for k in merged.state_dict())
    assert_close(merged(images).cls, adapted(images).cls, atol=1e-5, rtol=0)


@torch.no_grad()
def test_strength_leads_from_the_base_to_the_adapter(adapter: Path, base_file: Path, tmp_path: Path) -> None:
    base, half, whole = (load_backbone(MODEL, base_file, adapter, strength=s) for s in (0.0, 0.5, 1.0))
    plain = load_backbone(MODEL, base_file).state_dict()
    for name, value in half.state_dict().items():
        assert_close(base.state_dict()[name], plain[name])
        assert_close(value, (plain[name] + whole.state_dict()[name]) / 2, atol=1e-6, rtol=1e-5)
    merge_adapter(adapter, base_file, tmp_path / 'half.safetensors', strength=0.5)
    merged = load_backbone(MODEL, tmp_path / 'half.safetensors').state_dict()
    assert all(torch.equal(merged[name], value) for name, value in half.state_dict().items())
    # A weaker adapter is a file like any other.
    scale_adapter(adapter, load_backbone(MODEL, base_file), tmp_path / 'weak.safetensors', 0.5)
    weak = load_backbone(MODEL, base_file, tmp_path / 'weak.safetensors').state_dict()
    assert all(torch.equal(weak[name], value) for name, value in half.state_dict().items())
    with pytest.raises(ValueError, match=r'strength must be from 0 .* to 1'):
        scale_adapter(adapter, load_backbone(MODEL, base_file), tmp_path / 'x.safetensors', 2)


@pytest.mark.parametrize('strength', [2.0, -0.1, float('nan')])
def test_a_strength_is_a_share(adapter: Path, base_file: Path, strength: float) -> None:
    with pytest.raises(ValueError, match=r'strength must be from 0 .* to 1'):
        load_backbone(MODEL, base_file, adapter, strength=strength)


def test_a_strength_needs_an_adapter_that_is_a_difference(base_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'strength 0\.5 requires an adapter'):
        load_backbone(MODEL, base_file, strength=0.5)
    config = replace(CONFIG, extra=('patch_embed',))
    vit = create_vit(MODEL, bands=('nir', 'red'))
    load_weights(vit, base_file, fresh=['patch_embed'])
    explora(vit, config)
    save_adapter(tmp_path / 'bands.safetensors', vit, MODEL, config)
    with pytest.raises(ValueError, match='contains patch_embed, missing from the base'):
        load_backbone(MODEL, base_file, tmp_path / 'bands.safetensors', strength=0.5, bands=('nir', 'red'))


def test_the_file_holds_exactly_what_trains(adapted: ViT, adapter: Path) -> None:
    header, state = read_adapter(adapter)
    assert sorted(state) == sorted(trainable_names(adapted))
    assert adapter.stat().st_size < 4 * sum(t.numel() for t in state.values()) + 8192
    assert (header.backbone, header.img_size, header.patch_size) == (MODEL, 32, 8)


@torch.no_grad()
def test_a_merged_file_loads_strictly_into_timm(
    adapted: ViT, adapter: Path, base_file: Path, images: Tensor, tmp_path: Path
) -> None:
    merge_adapter(adapter, base_file, tmp_path / 'merged.safetensors')
    state, metadata = read_state(tmp_path / 'merged.safetensors')
    assert metadata['backbone'] == MODEL and json.loads(metadata['bands'])[0] == 'red'
    model = VisionTransformer(32, 8, num_classes=0, embed_dim=32, depth=3, num_heads=2).eval()
    model.load_state_dict(state, strict=True)
    expected = adapted(images)
    tokens = model.forward_features(images)
    assert_close(tokens[:, 0], expected.cls, atol=1e-5, rtol=0)
    assert_close(tokens[:, 1:], expected.patches[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_new_patch_embeddings_travel_in_the_adapter(base_file: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, extra=('patch_embed',))
    bands = ('nir', 'red', 'green', 'blue', 'swir1')
    vit = create_vit(MODEL, bands=bands)
    load_weights(vit, base_file, fresh=['patch_embed'])
    explora(vit, config)
    save_adapter(tmp_path / 'ms.safetensors', vit, MODEL, config)
    merge_adapter(tmp_path / 'ms.safetensors', base_file, tmp_path / 'merged.safetensors')
    image = torch.randn(2, 5, 32, 32)
    merged = load_backbone(MODEL, tmp_path / 'merged.safetensors', bands=bands)
    assert_close(merged(image).cls, vit.eval()(image).cls, atol=1e-5, rtol=0)
    loaded = load_backbone(MODEL, base_file, tmp_path / 'ms.safetensors', bands=bands)
    assert torch.equal(loaded.patch_embed.proj.weight, vit.patch_embed.proj.weight)


def test_another_base_is_refused(adapter: Path, base_state: dict[str, Tensor]) -> None:
    other = {**base_state, 'blocks.0.mlp.fc1.weight': base_state['blocks.0.mlp.fc1.weight'] + 1e-3}
    torch.save(other, adapter.parent / 'other.pth')
    out = adapter.parent / 'merged.safetensors'
    with pytest.raises(ValueError, match='trained on different base weights') as caught:
        merge_adapter(adapter, adapter.parent / 'other.pth', out)
    assert MODEL in str(caught.value) and '\n' not in str(caught.value)
    assert not out.exists()


def test_a_base_that_differs_only_in_what_the_adapter_replaces_is_accepted(
    adapter: Path, base_state: dict[str, Tensor]
) -> None:
    other = {**base_state, 'norm.weight': base_state['norm.weight'] + 1}
    torch.save(other, adapter.parent / 'other.pth')
    merge_adapter(adapter, adapter.parent / 'other.pth', adapter.parent / 'merged.safetensors')


def test_a_truncated_file_is_refused_wherever_it_was_cut(adapter: Path) -> None:
    content = adapter.read_bytes()
    for cut in (0, 1, 7, 8, 100, 1000, len(content) // 2, len(content) - 4, len(content) - 1):
        adapter.write_bytes(content[:cut])
        with pytest.raises(ValueError, match='damaged'):
            read_adapter(adapter)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'cls_token': None}, r'is missing cls_token \(1 missing, 0 unknown of \d+ tensors\)'),
        ({'blocks.0.attn.qkv.lora_b.q': None}, 'is missing blocks.0.attn.qkv.lora_b.q'),
        ({'pos_embed': torch.ones(1)}, 'contains unknown pos_embed'),
        ({'norm.bias': torch.ones(3)}, r'norm.bias of shape \(3,\), but the model expects \(32,\)'),
        ({'norm.bias': torch.full((32,), torch.nan)}, 'non-finite values in norm.bias'),
    ],
)
def test_a_file_that_lacks_or_adds_something_is_refused(
    adapter: Path, base_file: Path, change: dict[str, Tensor | None], sentence: str
) -> None:
    state, metadata = read_state(adapter)
    changed = {k: v for k, v in {**state, **change}.items() if v is not None}
    write_state(adapter, changed, metadata)
    with pytest.raises(ValueError, match=sentence):
        merge_adapter(adapter, base_file, adapter.parent / 'merged.safetensors')


def test_other_files_are_no_adapters(adapter: Path, base_file: Path) -> None:
    save_file({'a': torch.ones(1)}, adapter)
    for path in (adapter, base_file):
        with pytest.raises(ValueError, match='is not an adapter file'):
            read_adapter(path)


def test_a_failing_write_keeps_the_old_adapter(
    adapter: Path, adapted: ViT, fail_to_write: Callable[[], None]
) -> None:
    before, files = adapter.read_bytes(), sorted(os.listdir(adapter.parent))
    fail_to_write()
    with pytest.raises(OSError, match='No space left'):
        save_adapter(adapter, adapted, MODEL, CONFIG)
    assert adapter.read_bytes() == before and sorted(os.listdir(adapter.parent)) == files


def test_full_pre_training_has_no_adapter(base_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='save the whole model'):
        save_adapter(tmp_path / 'a', create_vit(MODEL), MODEL, ExPLoRAConfig.parse('full'))


def test_what_only_pre_training_uses_does_not_travel(base_file: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, extra=('mask_token',))
    vit = create_vit(MODEL, mask_token=True)
    load_weights(vit, base_file)
    explora(vit, config)
    save_adapter(tmp_path / 'adapter.safetensors', vit, MODEL, config)
    header, state = read_adapter(tmp_path / 'adapter.safetensors')
    assert header.explora_config == CONFIG and 'mask_token' not in state
    assert load_backbone(MODEL, base_file, tmp_path / 'adapter.safetensors').mask_token is None


def test_after_another_base_was_refused_the_model_is_as_it_was(
    adapter: Path, base_state: dict[str, Tensor]
) -> None:
    vit = create_vit(MODEL)
    own = {name: base_state[name] for name in vit.state_dict()}
    vit.load_state_dict({**own, 'blocks.0.mlp.fc1.weight': own['blocks.0.mlp.fc1.weight'] + 1e-3})
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r'trained on different base weights .*: use base\.pth, from which'
        ):
            put_adapter(vit, *read_adapter(adapter), adapter)
    vit.load_state_dict(own)
    put_adapter(vit, *read_adapter(adapter), adapter)


def test_a_merged_file_opens_at_its_size(base_file: Path, images: Tensor, tmp_path: Path) -> None:
    vit = load_backbone(MODEL, base_file, img_size=48)
    explora(vit, CONFIG)
    files = [tmp_path / name for name in ('adapter.safetensors', 'merged.safetensors')]
    save_adapter(files[0], vit, MODEL, CONFIG)
    merge_adapter(files[0], base_file, files[1])
    opened = load_backbone(None, files[1])
    assert opened.name == MODEL and opened.patch_embed.img_size == 48
    image = torch.randn(2, 3, 48, 48)
    assert_close(opened(image).patches, vit.eval()(image).patches)
    assert load_backbone(None, files[1], img_size=32).patch_embed.img_size == 32
    state, metadata = read_state(files[1])
    for sizes in ('{"img_size": 9}', '{"img_size": 8, "patch_size": 99}', 'x'):
        write_state(files[1], state, {**metadata, 'sizes': sizes})
        with pytest.raises(ValueError, match='has an invalid header'):
            load_backbone(None, files[1])


NORMALIZATION = Normalization((100.0, 110.0, 120.0), (50.0, 40.0, 30.0), value_range=(0.0, 255.0))


def test_the_header_states_how_images_were_normalized(adapted: ViT, base_file: Path, tmp_path: Path) -> None:
    adapted.normalization = NORMALIZATION
    files = tmp_path / 'a.safetensors', tmp_path / 'm.safetensors'
    save_adapter(files[0], adapted, MODEL, CONFIG)
    assert read_adapter(files[0])[0].normalization == NORMALIZATION
    assert load_backbone(MODEL, base_file, files[0]).normalization == NORMALIZATION
    merge_adapter(files[0], base_file, files[1])
    assert load_backbone(None, files[1]).normalization == NORMALIZATION
    assert load_backbone(MODEL, base_file).normalization is None


@torch.no_grad()
def test_a_file_of_version_1_loads_with_one_sentence(
    adapted: ViT, adapter: Path, base_file: Path, images: Tensor
) -> None:
    state, meta = read_state(adapter)
    header = json.loads(meta['adapter'])
    del header['header']
    write_state(adapter, state, {**meta, 'adapter': json.dumps(header)})
    with pytest.warns(UserWarning, match='does not specify how its images were normalized') as caught:
        vit = load_backbone(MODEL, base_file, adapter)
    assert len(caught) == 1 and vit.normalization is None
    assert_close(vit(images).cls, adapted(images).cls, atol=1e-5, rtol=0)
    write_state(adapter, state, {**meta, 'adapter': json.dumps({**header, 'header': 3})})
    with pytest.raises(ValueError, match='version must be 1 to 2, got 3: update explora_geo'):
        read_adapter(adapter)


@pytest.mark.parametrize('version', [1, 2])
@torch.no_grad()
def test_another_image_size_is_no_contradiction(base_file: Path, tmp_path: Path, version: int) -> None:
    vit = create_vit(MODEL, img_size=64)  # positions are resampled from 4x4 to 8x8
    load_weights(vit, base_file)
    explora(vit, CONFIG)
    path = tmp_path / 'a.safetensors'
    save_adapter(path, vit, MODEL, CONFIG)
    if version == 1:
        state, meta = read_state(path)
        header = {**json.loads(meta['adapter']), 'base_sha256': frozen_sha256(vit, grid=(8, 8)), 'header': 1}
        write_state(path, state, {**meta, 'adapter': json.dumps(header)})
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = {size: load_backbone(MODEL, base_file, path, img_size=size) for size in (32, 48, 64)}
        assert load_backbone(MODEL, base_file, path).patch_embed.img_size == 64
    assert torch.equal(found[64].pos_embed, vit.pos_embed)
    plain = load_backbone(MODEL, base_file)
    assert torch.equal(found[32].pos_embed, plain.pos_embed)


@torch.no_grad()
def test_trained_positions_are_resampled_with_the_image_size(base_file: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, extra=('pos_embed',))
    vit = create_vit(MODEL)
    load_weights(vit, base_file)
    explora(vit, config)
    vit.pos_embed += 1
    save_adapter(tmp_path / 'a.safetensors', vit, MODEL, config)
    other = load_backbone(MODEL, base_file, tmp_path / 'a.safetensors', img_size=48)
    assert other.pos_embed.shape == (1, 37, 32)
    assert torch.equal(other.pos_embed[:, 0], vit.pos_embed[:, 0])


def test_positions_that_changed_after_loading_belong_to_the_base(base_file: Path) -> None:
    vit = create_vit(MODEL, img_size=64)
    load_weights(vit, base_file)
    before = frozen_sha256(vit, ())
    with torch.no_grad():
        vit.pos_embed += 1
    assert frozen_sha256(vit, ()) != before


def test_everything_trains_of_what_is_loaded(adapter: Path, base_file: Path) -> None:
    for vit in (load_backbone(MODEL, base_file), load_backbone(MODEL, base_file, adapter)):
        assert not vit.training and all(p.requires_grad for p in vit.parameters())
        explora(vit, CONFIG)
        assert len(trainable_names(vit)) < len(list(vit.parameters()))


@pytest.mark.parametrize('name', ['license', 'licence'])
def test_a_license_is_read_in_the_spelling_of_older_files(adapter: Path, tmp_path: Path, name: str) -> None:
    state, metadata = read_state(adapter)
    stated = json.dumps({**json.loads(metadata['adapter']), name: 'MIT'})
    write_state(tmp_path / 'own.safetensors', state, {**metadata, 'adapter': stated})
    assert read_adapter(tmp_path / 'own.safetensors')[0].license == 'MIT'
    header = read_adapter(adapter)[0]
    write_state(
        tmp_path / 'model.safetensors', header.build().state_dict(), {**header.entries(), name: 'MIT'}
    )
    assert read_weights(tmp_path / 'model.safetensors').facts.license == 'MIT'
