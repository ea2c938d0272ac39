"""The model that torchgeo-bench builds from our files, by the interface that it calls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from benchmarks.tables.data import load_class
from benchmarks.torchgeo_bench_model import ExPLoRABench
from explora_geo.checkpoints import load_backbone, model_metadata, write_state
from explora_geo.models import create_vit

CONF = Path(__file__).parents[2] / 'benchmarks' / 'conf' / 'model' / 'explora_geo.yaml'


class Band(NamedTuple):
    """What torchgeo-bench says of a band, as far as it is read."""

    name: str
    mean: float
    std: float


RGB = [Band('red', 90.0, 30.0), Band('green', 100.0, 25.0), Band('blue', 80.0, 20.0)]


@pytest.fixture
def merged(small_names: None, tmp_path: Path) -> Path:
    vit = create_vit('vit_tiny_patch8_32')
    path = tmp_path / 'model.safetensors'
    write_state(path, vit.state_dict(), model_metadata(vit, 'vit_tiny_patch8_32'))
    return path


@pytest.fixture
def build(merged: Path) -> Callable[..., ExPLoRABench]:
    """Build as its runner does: the keys of the committed file, bands and normalisation on top."""
    config: dict[str, Any] = yaml.safe_load(CONF.read_text())
    kind = load_class(config.pop('_target_'))

    def built(bands: list[Band] = RGB, **changes: Any) -> ExPLoRABench:
        values = {**config, 'weights': str(merged), 'normalization': 'bandspec_zscore', **changes}
        model: ExPLoRABench = kind(bands=bands, **values)
        return model.eval()

    return built


def test_features_are_those_of_the_normalized_image(build: Callable[..., ExPLoRABench], merged: Path) -> None:
    raw = torch.rand(2, 3, 32, 32) * 255
    model = build(tokens='cls+avg')
    mean, std = (torch.tensor([b[i] for b in RGB]).view(1, 3, 1, 1) for i in (1, 2))
    expected = load_backbone('vit_tiny_patch8_32', merged)((raw - mean) / std)
    found = model.forward_patch_features(raw)
    torch.testing.assert_close(found, torch.cat([expected.cls, expected.patches[:, 0].mean(1)], dim=1))
    torch.testing.assert_close(model(raw), found)
    assert not found.requires_grad and model.num_channels == 3


def test_images_of_other_sizes_are_resized(build: Callable[..., ExPLoRABench]) -> None:
    assert build()(torch.rand(1, 3, 64, 64)).shape == (1, 32)
    assert build(img_size=64).backbone.patch_embed.grid_size == (8, 8)


def test_sentinel_names_of_the_colours_are_known_and_other_orders_refused(
    build: Callable[..., ExPLoRABench],
) -> None:
    build([Band('b04', 1.0, 1.0), Band('b03', 1.0, 1.0), Band('b02', 1.0, 1.0)])
    with pytest.raises(
        ValueError, match='expects the bands red, green, blue, but the dataset has blue, green, red'
    ):
        build(RGB[::-1])
    with pytest.raises(ValueError, match='has red, green: set dataset'):
        build(RGB[:2])


def test_unknown_choices_are_named(build: Callable[..., ExPLoRABench]) -> None:
    with pytest.raises(ValueError, match=r"tokens must be cls, avg or cls\+avg, got 'mean'"):
        build(tokens='mean')
    with pytest.raises(ValueError, match='normalization must be bandspec_zscore or identity'):
        build(normalization='minmax')


def test_layers_of_its_segmentation_probes_exist(build: Callable[..., ExPLoRABench]) -> None:
    layers = yaml.safe_load(CONF.read_text())['eval']['segmentation']['layers']
    assert len(layers) == 4 and all(name.startswith('blocks.') for name in layers)
    assert 'backbone.blocks.2' in dict(build().named_modules())
