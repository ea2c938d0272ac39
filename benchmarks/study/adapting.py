"""Sources, and a lean loop that adapts them to in-memory images with the package's own parts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from explora_geo.adaptation import explora, trainable_names
from explora_geo.adaptation.lora import merge_lora
from explora_geo.bands import RGB
from explora_geo.checkpoints import atomic_path, load_weights
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT
from explora_geo.objectives.schedules import TrainingLength
from explora_geo.trainers.optim import build_optimizer, build_schedule

from ..tables.recipe import OBJECTIVES, Recipe
from .domains import Domain, take
from .scoring import prepare

_TINY = 'vit_tiny_patch16_224_natural.safetensors'
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
KEPT = 200  # steps between saved states of a run


@dataclass(frozen=True)
class Source:
    """Weights to adapt."""

    model: str  # backbone by name
    weights: str | None  # name of a `WeightsEnum` or file
    size: int  # image side, pixels
    stats: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET  # mean and standard deviation of the bands
    beside: str = ''  # source to compare with, if not itself
    options: dict[str, Any] = field(default_factory=dict)  # options of `create_vit`


#: One group per band, with newly initialized patch embeddings.
_BANDS = {'tokenizer': 'group-channel', 'tokenizer_options': {'channel_groups': [[band] for band in RGB]}}
SOURCES = {
    'depth6': Source('vit_small_patch14_dinov2_depth6', 'ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6', 112),
    'vit_ti16': Source('vit_tiny_patch16_224', _TINY, 96, HALVES),
    'scratch': Source('vit_tiny_patch16_224', None, 96, HALVES, beside='vit_ti16'),
    'bands': Source('vit_tiny_patch16_224', _TINY, 96, HALVES, 'vit_ti16', _BANDS),
    'bands-scratch': Source('vit_tiny_patch16_224', None, 96, HALVES, 'vit_ti16', _BANDS),
    'distilled': Source('vit_tiny_patch16_224', 'distilled.safetensors', 96),
}


def reader(source: Source, domain: Domain) -> Callable[[Tensor], Tensor]:
    """Return a function that reads images of a domain by index, preprocessed for a source."""
    mean, std = (torch.tensor(s, device=domain.image.device).view(3, 1, 1) for s in source.stats)
    return lambda rows: prepare(domain.image[rows], source.size, mean, std)


def load_source(source: Source, **options: Any) -> tuple[ViT, dict[str, Tensor]]:
    """Return the source's backbone and the rest of its file, such as a decoder."""
    vit = create_vit(source.model, img_size=source.size, **source.options, **options)
    return vit, load_weights(vit, source.weights, vit.patch_embed.fresh).parts if source.weights else {}


def _keep(file: Path, step: int, states: Sequence[Any], *tensors: Tensor) -> None:
    """Save the state of a run."""
    numbers = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    drawn = random.getstate(), torch.get_rng_state(), numbers
    content = {'step': step, 'states': [s.state_dict() for s in states], 'drawn': drawn, 'tensors': tensors}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as part:
        torch.save(content, part)


def _go_on(file: Path, states: Sequence[Any]) -> tuple[int, Tensor, Tensor]:
    """Resume a run from the state saved by `_keep`; return its step and tensors."""
    content = torch.load(file, map_location='cpu', weights_only=True)
    for state, values in zip(states, content['states'], strict=True):
        state.load_state_dict(values)
    drawn, numbers, on_device = content['drawn']
    random.setstate(drawn)
    torch.set_rng_state(numbers)
    if on_device is not None:
        torch.cuda.set_rng_state(on_device)
    return content['step'], *content['tensors']


def adapt(
    source: Source,
    recipe: Recipe,
    domain: Domain,
    archive: Tensor,
    seed: int,
    adapter: Path | None = None,
    kept: Path | None = None,
) -> tuple[ViT, dict[str, Any]]:
    """Adapt to images of a domain, given by their indices; there must be at least one batch.

    Returns the resulting model, with LoRA merged in, and statistics of the run. The trained weights go to
    *adapter*, if given, as bfloat16 in safetensors under the backbone's own names. An interrupted run
    resumes from the file *kept*.
    """
    seed_everything(seed, verbose=False)
    device, batch, steps = domain.image.device, recipe.batch_size, recipe.steps
    vit, parts = load_source(source, **OBJECTIVES[recipe.objective].backbone_options)
    explora(vit, recipe.adaptation.with_extra(vit.patch_embed.fresh))
    objective = recipe.factory(vit).to(device).train()
    objective.load_pretrained(parts)
    read, archive = reader(source, domain), archive.to(device)
    epochs = max(1, steps * batch // len(archive))
    length = TrainingLength(steps, steps / epochs, batch)
    objective.set_schedule(length.total, length.epoch)
    optimizer = build_optimizer(objective, recipe.optim, batch, 'bf16-mixed')
    schedule = build_schedule(optimizer, recipe.optim, length)
    losses = torch.zeros(steps)
    order, start = torch.empty(0, dtype=torch.long), 0
    states = objective, optimizer, schedule
    if kept is not None and kept.is_file():
        start, order, losses = _go_on(kept, states)
    losses = losses.to(device)
    for step in range(start, steps):
        if kept is not None and step % KEPT == 0 and step > start:
            _keep(kept, step, states, order, losses.cpu())
        place, order = take(order, len(archive), batch)
        place = place.to(device)
        image = read(archive[place])
        with torch.autocast(device.type, torch.bfloat16):
            found = objective({'image': image, 'place': place}, step)
        loss = torch.stack([x.float() for x in found.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        for part in objective.clipped:
            clip_grad_norm_(part.parameters(), 3.0)
        objective.before_step(step)
        optimizer.step()
        objective.after_step(step + 1)
        schedule.step()
        losses[step] = loss.detach()
    count = max(1, steps // 20)
    numbers = {
        'steps': steps,
        'loss': [round(float(end.mean()), 4) for end in (losses[:count], losses[-count:])],
        'trained': sum(p.numel() for p in vit.parameters() if p.requires_grad),
    }
    final = objective.final_backbone
    if adapter is not None:
        names = set(trainable_names(vit))
        state = {k: v.cpu().bfloat16().contiguous() for k, v in final.state_dict().items() if k in names}
        save_file(state, adapter)
    final.mask_token = None  # used by the objective only; sources have none
    return merge_lora(final).eval(), numbers  # type: ignore[return-value]
