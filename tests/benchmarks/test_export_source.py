from pathlib import Path

import torch

from benchmarks.export_source import export_source
from explora_geo.checkpoints import read_state, write_state

METRICS = """epoch,step,train_loss,val_loss,val_knn,val_knn_gain
0,49,0.9,,,
0,99,0.7,,,
0,99,,0.5,0.6,0.1
1,199,0.6,,,
"""


def test_a_run_becomes_a_quantized_file_and_a_table(tmp_path: Path) -> None:
    weight = torch.randn(200, 150)
    write_state(
        tmp_path / 'model.safetensors', {'w': weight, 'dino_head.w': torch.randn(2)}, {'backbone': 'vit'}
    )
    (tmp_path / 'metrics.csv').write_text(METRICS)
    table = export_source(tmp_path, tmp_path / 'small.safetensors')
    state, metadata = read_state(tmp_path / 'small.safetensors')
    assert list(state) == ['w']
    torch.testing.assert_close(state['w'], weight, atol=0.03, rtol=0)
    assert metadata == {'backbone': 'vit', 'quantization': 'int8-rows'}
    assert table.splitlines()[2:] == [
        '| 1 | 100 | 0.800 | 0.500 | 0.600 | 0.100 |',
        '| 2 | 200 | 0.600 | - | - | - |',
    ]
