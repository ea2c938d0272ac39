"""What a row costs before it runs: parameters exactly, operations and memory by arithmetic."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from explora_geo.adaptation import explora, trainable_summary
from explora_geo.models import ViT, create_vit
from explora_geo.models.weights import all_weights
from explora_geo.objectives import MAE, DINOv2, Objective
from explora_geo.trainers.options import ADAPTATIONS

from .jobs import Job, split_batch
from .recipe import OBJECTIVES

# Bytes that a block keeps of a token for the backward pass, in units of its width, at 16 bits and without
# attention matrices (Korthikanti et al. 2022, equation 2).
_KEPT_WIDTHS = 34


@dataclass(frozen=True)
class Cost:
    """Cost of pre-training or tuning."""

    trainable: int  # parameters that train, of backbone and decoder; heads are not counted, as in the paper
    flops: float  # floating point operations per image, forward and backward, of backbone and decoder
    memory: float  # bytes at a batch on one device, estimated: weights, gradients, AdamW, activations
    steps: int  # optimizer steps
    batch: int  # images per step

    @property
    def work(self) -> float:
        """Operations of the whole run."""
        return self.flops * self.steps * self.batch


def forward_flops(width: int, depth: int, tokens: int, mlp_ratio: float = 4.0) -> float:
    """Operations of transformer blocks on a sequence; a multiplication and an addition are two."""
    matrices = 2 * tokens * (4 + 2 * mlp_ratio) * width**2
    attention = 4 * tokens**2 * width
    return depth * (matrices + attention)


def _backbone(job: Job) -> tuple[ViT, int]:
    """A row's backbone without numbers, and how many it has, but for the mask token."""
    options = OBJECTIVES[job.recipe.objective].backbone_options if job.recipe else {}
    options = {'learned_position': job.source.learned_position, **job.backbone_options, **options}
    with torch.device('meta'):
        vit = create_vit(job.source.model, **options)
    return vit, vit.num_parameters - (0 if vit.mask_token is None else vit.mask_token.numel())


def pretraining_cost(job: Job) -> Cost:
    """Cost of a row's pre-training, from its model built on the meta device.

    A decoder counts as one that the weights carry where they do, else it trains in full.
    """
    assert job.recipe is not None
    recipe, weights, (vit, parameters) = job.recipe, job.source.weights, _backbone(job)
    anew = vit.patch_embed.fresh if weights else ()
    explora(vit, recipe.adaptation.with_extra(anew))
    if vit.mask_token is not None:  # the objective looks whether it was ever trained
        trained = torch.ones(1, vit.embed_dim, device='cpu')
        vit.mask_token = nn.Parameter(trained, vit.mask_token.requires_grad)
    with torch.device('meta'):
        objective = recipe.factory(vit)
        entry = all_weights().get(weights)
        if isinstance(objective, MAE) and entry is not None and entry.meta['decoder']:
            # Where the bands are others the decoder is that of the same backbone for three bands.
            whole = MAE(create_vit(job.source.model)) if anew else objective
            objective.load_pretrained(whole.extra_state())
    parts = {k: n for k, n in trainable_summary(vit).items() if k != 'mask_token'}
    if recipe.adaptation.full:
        parts = {'everything': parameters}
    elif isinstance(objective, MAE) and anew:  # elsewhere the paper counts the encoder alone
        parts |= {f'decoder {k}': n for k, n in trainable_summary(objective.decoder).items()}
    tokens = _tokens(vit, objective)
    # Forward, gradients of activations everywhere and of what trains; the teacher sees global crops.
    share = min(1.0, sum(p.numel() for p in vit.parameters() if p.requires_grad) / parameters)
    forward = [forward_flops(width, depth, n) for n, width, depth in tokens]
    flops = sum(forward) * (2 + share) + (sum(forward[:2]) if isinstance(objective, DINOv2) else 0.0)
    per_device, *_ = split_batch(job.scale, job.pretrain_data, recipe.batch_size)
    held, training = (
        sum({id(p): p.numel() for p in objective.parameters() if p.requires_grad or frozen}.values())
        for frozen in (True, False)
    )
    kept = _KEPT_WIDTHS * per_device * sum(n * width * depth for n, width, depth in tokens)
    return Cost(sum(parts.values()), flops, 4 * held + 12 * training + kept, recipe.steps, recipe.batch_size)


def tuning_cost(job: Job) -> Cost | None:
    """Cost of a row's tuning, without the head; None for a probe, or if the length is not known."""
    if job.row.tuning in ('probe', 'none'):
        return None
    settings, steps = job.tune, job.tune.steps
    if steps is None:
        if job.data.images is None or settings.epochs is None:
            return None
        steps = settings.epochs * (job.data.images // settings.batch_size)
    vit, parameters = _backbone(job)
    explora(vit, ADAPTATIONS[job.row.tuning])
    trainable = sum(trainable_summary(vit).values())
    tokens, (per_device, *_) = _sequence(vit), split_batch(job.scale, job.data, settings.batch_size)
    memory = 4 * parameters + 12 * trainable + _KEPT_WIDTHS * per_device * tokens * vit.embed_dim * vit.depth
    flops = forward_flops(vit.embed_dim, vit.depth, tokens) * (2 + trainable / parameters)
    return Cost(trainable, flops, memory, steps, settings.batch_size)


def _sequence(vit: ViT) -> int:
    return 1 + vit.patch_embed.num_patches * vit.patch_embed.num_slots


def _tokens(vit: ViT, objective: Objective) -> list[tuple[int, int, int]]:
    """Sequences with gradients per image: tokens, width and blocks."""
    if isinstance(objective, MAE):
        decoder: Any = objective.decoder
        kept = 1 + int((_sequence(vit) - 1) * (1 - objective.mask_ratio))
        own = _sequence(vit), int(decoder.mask_token.shape[-1]), len(decoder.blocks)
        return [(kept, vit.embed_dim, vit.depth), own]
    assert isinstance(objective, DINOv2) and objective.views is not None
    views, found = objective.views, []
    for count, side in ((2, views.global_size), (views.num_local, views.local_size)):
        assert side is not None  # the objective has settled it
        length = 1 + vit.patch_embed.num_slots * (side // vit.patch_embed.patch_size) ** 2
        found += [(length, vit.embed_dim, vit.depth)] * count
    return found
