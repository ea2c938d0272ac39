"""What a row costs before it runs: parameters exactly, operations and memory by arithmetic."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from explora_geo.adaptation import explora, trainable_summary
from explora_geo.models import ViT, create_vit
from explora_geo.models.weights import all_weights
from explora_geo.objectives import MAE, DINOv2, Objective
from explora_geo.objectives.schedules import Horizon
from explora_geo.trainers.optim import build_optimizer, build_schedule
from explora_geo.trainers.recipes import ADAPTATIONS

from .adalora import add_adalora
from .jobs import Job, split_batch
from .recipe import Recipe
from .source import backbone_options

# Bytes that a block keeps of a token for the backward pass, in units of its width, at 16 bits and without
# attention matrices (Korthikanti et al. 2022, equation 2).
_KEPT_WIDTHS = 34


@dataclass(frozen=True)
class Cost:
    """Cost of pre-training or tuning.

    Attributes:
        trainable: Parameters that train, of backbone and decoder; heads are not counted, as in the paper.
        parameters: Parameters of the backbone.
        parts: The trainable ones by part.
        flops: Floating point operations per image, forward and backward, of backbone and decoder.
        memory: Bytes at a batch on one device, estimated: weights, gradients, AdamW, activations.
        steps: Optimiser steps.
        batch: Images per step.
        learning_rates: Rate at the first step, at its highest and at the last step.
    """

    trainable: int
    parameters: int
    parts: dict[str, int]
    flops: float
    memory: float
    steps: int
    batch: int
    learning_rates: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def images(self) -> int:
        """Images seen."""
        return self.steps * self.batch


def forward_flops(width: int, depth: int, tokens: int, mlp_ratio: float = 4.0) -> float:
    """Operations of transformer blocks on one sequence; a multiplication and an addition are two.

    Args:
        width: Width D.
        depth: Blocks.
        tokens: Tokens N with the class token.
        mlp_ratio: Hidden width of the MLP over D.
    """
    matrices = 2 * tokens * (4 + 2 * mlp_ratio) * width**2
    attention = 4 * tokens**2 * width
    return depth * (matrices + attention)


def build_backbone(job: Job) -> ViT:
    """A row's backbone without numbers."""
    source = job.source
    with torch.device('meta'):
        return create_vit(
            source.model,
            learned_position=source.learned_position,
            **backbone_options(source, job.backbone_options),
            **(objective_of(job.recipe).backbone_options if job.recipe else {}),
        )


def objective_of(recipe: Recipe) -> type[Objective]:
    """Class of a recipe's objective."""
    return MAE if recipe.objective == 'MAE' else DINOv2


def pretraining_cost(job: Job) -> Cost:
    """Cost of a row's pre-training, from its model built on the meta device, and its schedule checked.

    A decoder counts as one that the weights carry where they do, else it trains in full.
    """
    assert job.recipe is not None
    recipe, source = job.recipe, job.source
    vit = build_backbone(job)
    anew = vit.patch_embed.fresh if source.weights else ()
    parameters = vit.num_parameters - (0 if vit.mask_token is None else vit.mask_token.numel())
    explora(vit, recipe.adaptation.with_extra(anew))
    if vit.mask_token is not None:  # the objective looks whether it was ever trained
        trained = torch.ones(1, vit.embed_dim, device='cpu')
        vit.mask_token = nn.Parameter(trained, vit.mask_token.requires_grad)
    with torch.device('meta'):
        objective = recipe.factory(vit)
        if isinstance(objective, MAE) and source.weights and _has_decoder(source.weights):
            objective.load_pretrained(_decoder_parts(source.model, objective, bool(anew)))
    parts = {k: n for k, n in trainable_summary(vit).items() if k != 'mask_token'}
    if recipe.adaptation.full:
        parts = {'everything': parameters}
    elif isinstance(objective, MAE):
        decoder = trainable_summary(objective.decoder)
        # Where patches stay as they are the paper counts the encoder alone.
        parts |= {f'decoder {k}': n for k, n in decoder.items()} if anew else {}
    trainable = sum(parts.values())
    everything = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    share = min(1.0, sum(p.numel() for p in vit.parameters() if p.requires_grad) / parameters)
    tokens = _tokens(vit, objective)
    flops = _flops(vit, objective, tokens, share)
    per_device, _ = split_batch(job.scale, job.pretrain_data, recipe.batch_size)
    activations = _KEPT_WIDTHS * per_device * sum(n * width * depth for n, width, depth in tokens)
    held = {id(p): p.numel() for p in objective.parameters()}
    memory = 4 * sum(held.values()) + 12 * everything + activations
    return Cost(
        trainable,
        parameters,
        parts,
        flops,
        memory,
        recipe.steps,
        recipe.batch_size,
        _schedule(objective, job),
    )


def tuning_cost(job: Job, images: int | None) -> Cost | None:
    """Cost of a row's tuning, without the head; None for a probe, or if the length is not known."""
    if job.row.tuning in ('probe', 'none'):
        return None
    settings = job.tune
    steps = settings.steps
    if steps is None:
        if images is None or settings.epochs is None:
            return None
        steps = settings.epochs * (images // settings.batch_size)
    vit = build_backbone(job)
    parameters = vit.num_parameters - (0 if vit.mask_token is None else vit.mask_token.numel())
    if job.row.tuning == 'adalora':
        with torch.device('meta'):
            add_adalora(vit)
        trainable = sum(p.numel() for p in vit.parameters() if p.requires_grad)
    else:
        explora(vit, ADAPTATIONS[job.row.tuning])
        trainable = sum(trainable_summary(vit).values())
    tokens = _sequence(vit)
    forward = forward_flops(vit.embed_dim, vit.depth, tokens)
    memory = 4 * parameters + 12 * trainable
    per_device, _ = split_batch(job.scale, job.data, settings.batch_size)
    memory += _KEPT_WIDTHS * per_device * tokens * vit.embed_dim * vit.depth
    flops = forward * (2 + trainable / parameters)
    return Cost(trainable, parameters, {}, flops, memory, steps, settings.batch_size)


def _sequence(vit: ViT) -> int:
    return 1 + vit.patch_embed.num_patches * vit.patch_embed.num_slots


def _tokens(vit: ViT, objective: Objective) -> list[tuple[int, int, int]]:
    """Sequences with gradients per image: tokens, width and blocks."""
    patches = _sequence(vit) - 1
    if isinstance(objective, MAE):
        kept = 1 + int(patches * (1 - objective.mask_ratio))
        decoder = objective.decoder
        return [(kept, vit.embed_dim, vit.depth), (1 + patches, _width(decoder), len(decoder.blocks))]
    assert isinstance(objective, DINOv2)
    views, slots = objective.views, vit.patch_embed.num_slots
    assert views is not None
    found = []
    for count, side in ((2, views.global_size), (views.num_local, views.local_size)):
        assert side is not None  # the objective has settled it
        length = 1 + slots * (side // vit.patch_embed.patch_size) ** 2
        found += [(length, vit.embed_dim, vit.depth)] * count
    return found


def _width(decoder: Any) -> int:
    return int(decoder.mask_token.shape[-1])


def _flops(vit: ViT, objective: Objective, tokens: list[tuple[int, int, int]], share: float) -> float:
    """Forward, gradients of activations everywhere, gradients of the weights that train, and the teacher."""
    forward = [forward_flops(width, depth, n) for n, width, depth in tokens]
    teacher = sum(forward[:2]) if isinstance(objective, DINOv2) else 0.0
    return sum(forward) * (2 + share) + teacher


def _has_decoder(weights: str) -> bool:
    entry = all_weights().get(weights)
    return bool(entry is not None and entry.meta['decoder'])


def _decoder_parts(model: str, objective: MAE, anew: bool) -> Any:
    """Decoder of the weights: that of the same backbone for three bands where the bands are others."""
    if not anew:
        return objective.extra_state()
    return MAE(create_vit(model)).extra_state()


def _schedule(objective: nn.Module, job: Job) -> tuple[float, float, float]:
    """Build optimiser and schedule as a run would, and read the rate of its first group along the way."""
    recipe = job.recipe
    assert recipe is not None
    total = recipe.steps
    images = job.pretrain_data.images or recipe.batch_size * total
    epochs = max(1, round(recipe.batch_size * total / images))
    optimizer = build_optimizer(objective, recipe.optim, recipe.batch_size)
    schedule = build_schedule(optimizer, recipe.optim, total, epochs, recipe.batch_size)
    highest = max(group['initial_lr'] for group in optimizer.param_groups)
    factor = schedule.lr_lambdas[0]  # type: ignore[attr-defined]
    warm = min(Horizon(total, total / epochs).steps(recipe.optim.warmup_length), total - 1)
    return tuple(highest * factor(step) for step in (0, warm, total - 1))  # type: ignore[return-value]
