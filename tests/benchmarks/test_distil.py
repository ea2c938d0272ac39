"""A student distilled from a trunk is a whole network under timm's keys."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from benchmarks.sources.distil import distil
from explora_geo.models import create_vit


def test_the_student_is_a_vit_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = create_vit('vit_small_patch14_dinov2', img_size=84)
    save_file(trunk.state_dict(), tmp_path / 'trunk.safetensors')
    pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    state = distil(tmp_path / 'trunk.safetensors', pixels, epochs=2, batch=4)
    student = timm.create_model('vit_tiny_patch16_224', img_size=96, num_classes=0)
    start = {k: v.clone() for k, v in student.state_dict().items()}
    student.load_state_dict(state)
    assert all(torch.isfinite(v).all() for v in state.values())
    assert not torch.equal(state['blocks.0.attn.qkv.weight'], start['blocks.0.attn.qkv.weight'])
