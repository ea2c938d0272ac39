import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.checkpoints import load_backbone, read_state
from explora_geo.demo.measure import Protocol
from explora_geo.demo.run import BACKBONE, SOURCE, Recipe, find_data, reconstructions, run_demo
from explora_geo.models import create_vit
from explora_geo.objectives import DINOv2

RECIPES = [Recipe(batch_size=16), Recipe(ExPLoRAConfig.parse('[L]-r8'), 'DINOv2', batch_size=16)]


@pytest.mark.group(name='examples')
@pytest.mark.parametrize('recipe', RECIPES, ids=lambda recipe: recipe.objective)
def test_the_demo_leaves_report_picture_and_an_adapter_that_merges(
    few_tiles: Path, tmp_path: Path, recipe: Recipe
) -> None:
    protocol = Protocol(probe_per_class=3, probe_seeds=2, tune_per_class=2, tune_seeds=2, tune_epochs=1)
    report = run_demo(tmp_path, steps=2, data=few_tiles, protocol=protocol, recipe=recipe)
    assert report['adaptation'].startswith({'MAE': 'M-ExPLoRA', 'DINOv2': 'D-ExPLoRA'}[recipe.objective])
    assert json.loads((tmp_path / 'demo.json').read_text())['rows'] == report['rows']
    assert [row['seeds'] for row in report['rows']] == [2, 2, 2]
    text = (tmp_path / 'demo.md').read_text()
    assert all(row['measurement'] in text for row in report['rows'])
    assert report['verdict'] in text
    assert Image.open(tmp_path / 'demo.png').width > 800
    assert report['tiles'] == {'unlabelled': 80, 'labelled': 60, 'validation': 20, 'test': 30}
    merged, _ = read_state(tmp_path / 'model.safetensors')
    loaded = load_backbone(BACKBONE, SOURCE, adapter=tmp_path / 'adapter.safetensors').state_dict()
    assert all(torch.allclose(merged[k], loaded[k], atol=1e-6) for k in merged)
    source, _ = read_state(SOURCE.url.removeprefix('file://'))
    assert not torch.equal(merged['cls_token'], source['cls_token'].float())


def test_reconstructions_are_the_sources_where_the_objective_has_no_decoder() -> None:
    vit = create_vit(BACKBONE, mask_token=True, dynamic_img_size=True)
    image = torch.randn(2, 3, 64, 64)
    pictures = reconstructions(DINOv2(vit), image)
    assert list(pictures) == ['masked', 'reconstruction\nby the source']
    masked, filled = pictures.values()
    hidden = masked == 0
    assert 0.7 < hidden.float().mean() < 0.8
    assert torch.allclose(filled[~hidden], image[~hidden], atol=1e-6)


def test_arguments_of_the_objective_are_checked_and_named() -> None:
    with pytest.raises(ValueError, match=r"MAE cannot take \{'views': 3\}"):
        _ = Recipe(objective='MAE', arguments={'views': 3}).factory
    with pytest.raises(ValueError, match='num_crops'):
        _ = Recipe(objective='DINOv2', arguments={'views': {'num_crops': 3}}).factory


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='steps must be at least 1, got 0'):
        run_demo(tmp_path, steps=0)


def test_missing_tiles_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no EuroSAT tiles'):
        find_data(tmp_path)
