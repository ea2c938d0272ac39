"""The analysis reads what is in the features of each model, and draws them side by side."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.tables.analyse import analyse, find_models, write_analysis
from explora_geo.checkpoints import model_metadata, write_state
from explora_geo.models import create_vit


def test_models_share_one_figure_and_early_blocks_know_the_place_of_a_patch(
    tiles: Path, tmp_path: Path, small_names: None
) -> None:
    for name, factor in (('plain', 1), ('placed', 100)):
        vit = create_vit('vit_tiny_patch8_32')
        with torch.no_grad():
            vit.pos_embed *= factor  # says little else than where a patch is
        file = tmp_path / f'{name}.safetensors'
        write_state(file, vit.state_dict(), model_metadata(vit, 'vit_tiny_patch8_32'))
    names = [f'{n}={tmp_path / n}.safetensors' for n in ('plain', 'placed')]
    models = find_models(names, tmp_path / 'none.jsonl', tmp_path, None)
    found = analyse(models, tiles, 12)
    assert found['placed'][0].position > 0.9 and len(found['plain']) == 3
    assert all(b.eigenvalue_mean > 0 and 0 <= b.label <= 1 for blocks in found.values() for b in blocks)
    files = write_analysis(tmp_path / 'out', found)
    assert list(json.loads(files[0].read_text())) == ['plain', 'placed']
    assert Image.open(files[1]).width > 1000


def test_bad_input_is_named(tiles: Path, tmp_path: Path, small_names: None) -> None:
    with pytest.raises(ValueError, match='at least four images of two classes'):
        analyse({'one': create_vit('vit_tiny_patch8_32')}, tiles, 3)
    with pytest.raises(ValueError, match="'3:l' is neither NAME=FILE nor a row with results"):
        find_models(['3:l'], tmp_path / 'none.jsonl', tmp_path, None)
