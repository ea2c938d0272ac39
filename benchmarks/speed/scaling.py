"""How the time of a step grows with pixels, images, dates and groups of bands."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.models import create_vit
from explora_geo.models.tokenizers import SENTINEL2

from ..tables.cost import forward_flops
from .clock import alternate
from .images import read_images
from .ours import mae_step
from .records import add_row, describe
from .scaling_report import draw, markdown
from .setting import Optimised, Setting

ADAPTATION = '[L]-r32'
BANDS_PER_GROUP = 2
#: Values of what grows, by its name; the others keep the setting's.
AXES: dict[str, tuple[int, ...]] = {
    'image size': (96, 128, 192, 256, 384),
    'batch': (1, 2, 4, 8, 16),
    'frames': (1, 2, 3, 4, 6),
    'channel groups': (1, 2, 3, 4, 5),
}


def measure_scaling(
    out: Path,
    setting: Setting,
    multispectral: Path,
    repeats: int = 5,
    axes: Mapping[str, tuple[int, ...]] = AXES,
) -> Path:
    """Time M-ExPLoRA's step along every axis, the points of an axis in turns.

    Args:
        out: Folder; rows are added to `speed_scaling.jsonl`, `speed_scaling.md` shows all of them and
            `speed_scaling.png` this one.
        setting: The work of a step where nothing grows.
        multispectral: Folder of 13-band tiles in class folders.
        repeats: Rounds that count.
        axes: Values by what grows.

    Returns:
        The Markdown file.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    build: dict[str, Callable[[Setting, int], Optimised]] = {
        'image size': lambda s, n: mae_step(replace(s, image_size=n), ADAPTATION),
        'batch': lambda s, n: mae_step(replace(s, batch=n), ADAPTATION),
        'frames': frames_step,
        'channel groups': partial(groups_step, folder=multispectral),
    }
    for axis, values in axes.items():
        Console().print(axis)
        steps: dict[str, Optimised] = {}
        for value in values:
            torch.manual_seed(0)
            steps[str(value)] = build[axis](setting, value)
        times = alternate(steps, repeats)
        found[axis] = [
            {
                'value': value,
                'tokens': tokens(steps[str(value)]),
                'flops': flops(steps[str(value)], value if axis == 'batch' else setting.batch),
                **times[str(value)]._asdict(),
            }
            for value in values
        ]
    row = {**describe('mae', setting), 'repeats': repeats, 'axes': found}
    draw(out / 'speed_scaling.png', row)
    return add_row(out / 'speed_scaling.jsonl', row, markdown)


def tokens(step: Optimised) -> int:
    """Patch tokens of an image, of all its slots."""
    tokenizer: Any = step.module.backbone.patch_embed  # type: ignore[union-attr]
    return int(tokenizer.num_patches * tokenizer.num_slots)


def flops(step: Optimised, batch: int) -> float:
    """Operations of the blocks of encoder and decoder, forward and backward but for frozen weights.

    Args:
        step: Step of MAE.
        batch: Images.
    """
    objective: Any = step.module
    vit, decoder, count = objective.backbone, objective.decoder, tokens(step)
    kept = 1 + int(count * (1 - objective.mask_ratio))
    width = decoder.mask_token.shape[-1]
    forward = forward_flops(vit.embed_dim, vit.depth, kept)
    return 2 * batch * (forward + forward_flops(width, len(decoder.blocks), 1 + count))


def frames_step(setting: Setting, frames: int) -> Optimised:
    """A step on series of that many frames, real images each with a month of its own."""
    vit = create_vit(
        setting.model,
        img_size=setting.image_size,
        tokenizer='temporal',
        tokenizer_options={'num_frames': frames},
    )
    explora(vit, ExPLoRAConfig.parse(ADAPTATION))
    images = read_images(setting.images, setting.batch * frames, setting.image_size)
    series = images.unflatten(0, (setting.batch, frames))
    months = torch.arange(frames, dtype=torch.float32)
    times = torch.stack([torch.full_like(months, 20), months % 12, torch.full_like(months, 10)], dim=1)
    batch = {'image': series, 'timestamps': times.expand(setting.batch, -1, -1)}
    return mae_step(setting, ADAPTATION, vit, batch=_move(batch, setting))


def groups_step(setting: Setting, groups: int, folder: Path) -> Optimised:
    """A step on real 13-band tiles in that many groups of two bands each."""
    bands = SENTINEL2[: BANDS_PER_GROUP * groups]
    chosen = [bands[i : i + BANDS_PER_GROUP] for i in range(0, len(bands), BANDS_PER_GROUP)]
    vit = create_vit(
        setting.model,
        img_size=setting.image_size,
        tokenizer='group-channel',
        tokenizer_options={'channel_groups': chosen},
    )
    explora(vit, ExPLoRAConfig.parse(ADAPTATION).with_extra(vit.patch_embed.fresh))
    dataset = FolderDataset(folder, file_bands=MS_BANDS, bands=bands, size=setting.image_size)
    if len(dataset) < setting.batch:
        raise ValueError(f'{folder} holds {len(dataset)} images, {setting.batch} needed')
    images = torch.stack([dataset[i * len(dataset) // setting.batch]['image'] for i in range(setting.batch)])
    deviation, mean = torch.std_mean(images, dim=(0, 2, 3), keepdim=True)
    batch = {'image': (images - mean) / deviation}
    return mae_step(setting, ADAPTATION, vit, batch=_move(batch, setting))


def _move(batch: dict[str, Tensor], setting: Setting) -> dict[str, Tensor]:
    return {name: tensor.to(setting.device) for name, tensor in batch.items()}
