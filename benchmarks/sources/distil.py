"""Distil middle blocks of a DINOv2 ViT-S/14 trunk into a whole ViT-Ti/16 of 96 px on natural images.

    python -m benchmarks.sources.distil TRUNK.safetensors IMAGES.npz OUT.safetensors [EPOCHS]

The trunk is `benchmarks.sources.dinov2_depth6.trunk(..., depth=12)` under timm's keys, the images are the
domain `natural` of `benchmarks.study.domains`. Student and trunk see the same random crop.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from explora_geo.checkpoints import load_weights
from explora_geo.models import create_vit
from explora_geo.transforms.multicrop import _random_affine

from ..study.adapting import IMAGENET

BLOCKS = (6, 8, 9)
SIDES = {'student': 96, 'trunk': 84}


def distil(
    trunk: Path, pixels: Tensor, epochs: int, batch: int = 512, rate: float = 2e-3
) -> dict[str, Tensor]:
    """Weights of the student under timm's keys."""
    torch.manual_seed(0)
    device = pixels.device
    teacher = create_vit('vit_small_patch14_dinov2', img_size=SIDES['trunk'])
    load_weights(teacher, trunk)
    teacher = teacher.to(device).eval().requires_grad_(False)
    student = create_vit('vit_tiny_patch16_224', img_size=SIDES['student']).to(device)
    heads = nn.ModuleList(nn.Linear(student.embed_dim, teacher.embed_dim) for _ in (*BLOCKS, *BLOCKS)).to(
        device
    )
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in IMAGENET)
    weights = [*student.parameters(), *heads.parameters()]
    groups = [
        {'params': [p for p in weights if p.ndim > 1], 'weight_decay': 0.05},
        {'params': [p for p in weights if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    per_epoch = len(pixels) // batch
    total, start = epochs * per_epoch, time.time()

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:])

    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(len(pixels)).to(device)
        rows = order[(step % per_epoch) * batch :][:batch]
        image = (pixels[rows].float() / 255 - mean) / std
        where = _random_affine(batch, (0.3, 1.0), (True, False), False).to(image)
        views = {}
        for name, side in SIDES.items():
            grid = F.affine_grid(where, [batch, 3, side, side], align_corners=False)
            views[name] = F.grid_sample(image, grid, 'bicubic', padding_mode='border', align_corners=False)
        for group in optimizer.param_groups:
            rise = min(1.0, (step + 1) / (0.05 * total))
            group['lr'] = rate * rise * 0.5 * (1 + math.cos(math.pi * step / total))
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                wanted = teacher.intermediate(views['trunk'], [b - 1 for b in BLOCKS])
            found = student(views['student'])
            losses = []
            for i, target in enumerate(wanted):
                losses.append(F.smooth_l1_loss(heads[2 * i](found.cls).float(), norm(target.cls)))
                losses.append(F.smooth_l1_loss(heads[2 * i + 1](found.patches).float(), norm(target.patches)))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 3.0)
        optimizer.step()
        if step % (5 * per_epoch) == 0 or step == total - 1:
            print(f'distil {step}/{total}: {loss.item():.4f} after {time.time() - start:.0f} s', flush=True)
    return {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}


if __name__ == '__main__':
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with np.load(sys.argv[2]) as held:
        images = torch.from_numpy(held['image']).to(device)
    state = distil(Path(sys.argv[1]), images, int(sys.argv[4]) if len(sys.argv) > 4 else 8)
    out = Path(sys.argv[3])
    save_file(state, out.with_suffix('.part'))
    out.with_suffix('.part').rename(out)
