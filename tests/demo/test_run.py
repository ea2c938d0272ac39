import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from explora_geo.checkpoints import load_backbone, read_state
from explora_geo.demo.measure import Protocol
from explora_geo.demo.run import BACKBONE, SOURCE, find_data, run_demo


@pytest.mark.slow
def test_the_demo_leaves_report_picture_and_an_adapter_that_merges(few_tiles: Path, tmp_path: Path) -> None:
    protocol = Protocol(probe_per_class=3, probe_seeds=2, tune_per_class=2, tune_seeds=2, tune_epochs=1)
    report = run_demo(tmp_path, steps=2, data=few_tiles, protocol=protocol)
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


def test_missing_tiles_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no EuroSAT tiles'):
        find_data(tmp_path)
