"""Recipes, and a lean loop that adapts to images in memory by them, with the package's own parts."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_names
from explora_geo.adaptation.lora import merge_lora
from explora_geo.checkpoints import load_weights
from explora_geo.models import create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE, Anchor, DINOv2, Objective, PhaseConfig, TeacherConfig
from explora_geo.objectives.anchor import AnchorConfig
from explora_geo.trainers.optim import OptimConfig, build_optimizer, build_schedule
from explora_geo.transforms.multicrop import ViewsConfig

from .domains import Domain
from .scoring import prepare

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Source:
    """Weights that are adapted.

    Attributes:
        model: Backbone by name.
        weights: Name of a `WeightsEnum` or file.
        size: Image side, pixels.
        stats: Mean and deviation of each band that normalize images.
    """

    model: str
    weights: str | None
    size: int
    stats: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET


SOURCES = {
    'depth6': Source('vit_small_patch14_dinov2_depth6', 'ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6', 112),
    'vit_s14': Source('vit_small_patch14_dinov2', 'dinov2_s14.safetensors', 112),
    'vit_ti16': Source('vit_tiny_patch16_224', 'vit_tiny_patch16_224_natural.safetensors', 96, HALVES),
    'distilled': Source('vit_tiny_patch16_224', 'distilled.safetensors', 96),
}


@dataclass(frozen=True)
class Recipe:
    """How a source is adapted.

    Attributes:
        objective: `anchor`, `D`, or `M`.
        adaptation: What trains, in the paper's notation without its first letter.
        rate: Learning rate of blocks.
        lora: Factor on it for LoRA matrices.
        batch: Images of a step.
        photometry: Of the crops of D: `dinov2`, `light` or `none`.
        head_warmup: Share of the run in which heads train alone.
        arguments: Arguments of `Anchor`, or with D of its term, if any.
        options: Further arguments of the objective.
    """

    objective: str = 'anchor'
    adaptation: str = '[L]-r32'
    rate: float = 5e-4
    lora: float = 3.0
    batch: int = 64
    photometry: str = 'light'
    head_warmup: float = 0.0
    arguments: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Fields that are not the default."""
        default = asdict(Recipe())
        return {k: v for k, v in asdict(self).items() if v != default[k]}

    def build(self, source: Source) -> Callable[[ViT], Objective]:
        """What builds the objective around a backbone."""
        if self.objective == 'anchor':
            return lambda vit: Anchor(vit, **(self.arguments or {}), **self.options)
        if self.objective == 'M':
            return lambda vit: MAE(vit, **self.options)
        patch = int(source.model.split('patch')[1].split('_')[0])
        grid = round(0.75 * source.size / patch)
        sizes: dict[str, Any] = {'global_size': grid * patch, 'local_size': max(1, grid // 2) * patch}
        views = ViewsConfig(
            **sizes,
            num_local=4,
            local_scale=(0.1, 0.4),
            vertical_flip=True,
            quarter_turns=True,
            **_PHOTOMETRY[self.photometry],
        )
        anchor = None if self.arguments is None else AnchorConfig(**self.arguments)
        return lambda vit: DINOv2(
            vit,
            head=HeadConfig(prototypes=1024, hidden_dim=512, bottleneck_dim=128),
            teacher=TeacherConfig(centering='sinkhorn', temperature=0.04, final_temperature=0.04),
            views=views,
            anchor=anchor,
            phases=PhaseConfig(head_warmup_fraction=self.head_warmup),
            **self.options,
        )


_PHOTOMETRY: dict[str, dict[str, Any]] = {
    'dinov2': {},
    'light': {
        'brightness': 0.3,
        'contrast': 0.3,
        'saturation': 0.1,
        'hue': 0.05,
        'grayscale': 0.1,
        'solarize': 0.0,
        'blur': (0.5, 0.1, 0.3),
    },
    'none': {'jitter': 0.0, 'grayscale': 0.0, 'solarize': 0.0, 'blur': (0.0, 0.0, 0.0)},
}


def stats_of(source: Source, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and deviation that normalize images, shape (3, 1, 1)."""
    mean, std = (torch.tensor(s, device=device).view(3, 1, 1) for s in source.stats)
    return mean, std


def load_source(source: Source, device: torch.device | str, **options: Any) -> ViT:
    """The source's backbone."""
    vit = create_vit(source.model, img_size=source.size, **options)
    if source.weights is not None:
        load_weights(vit, source.weights)
    return vit.to(device).eval()


def adapt(
    source: Source,
    recipe: Recipe,
    domain: Domain,
    views: int,
    seed: int = 0,
    archive: Tensor | None = None,
    adapter: Path | None = None,
) -> tuple[ViT, dict[str, Any]]:
    """Adapt to the archive of a domain.

    Args:
        source: Weights.
        recipe: How.
        domain: Images, on the device that trains.
        views: Images to see.
        seed: Of everything that is drawn.
        archive: Images to adapt to, all of the domain's archive if None.
        adapter: File to write what trained to, as bfloat16 in safetensors under the backbone's own names.

    Returns:
        What the run leaves behind, with LoRA merged in, and numbers of the run.
    """
    torch.manual_seed(seed)
    device = domain.image.device
    factory = recipe.build(source)
    kinds: dict[str, type[Objective]] = {'M': MAE, 'D': DINOv2, 'anchor': Anchor}
    options = kinds[recipe.objective].backbone_options
    vit = create_vit(source.model, img_size=source.size, **options)
    loaded = load_weights(vit, source.weights) if source.weights else None
    explora(vit, ExPLoRAConfig.parse(recipe.adaptation))
    objective = factory(vit).to(device).train()
    if loaded is not None:
        objective.load_pretrained(loaded.parts)
    archive = (domain.archive if archive is None else archive).to(device)
    batch = min(recipe.batch, len(archive))
    steps, stats = max(1, views // batch), stats_of(source, device)
    config = OptimConfig(
        base_lr=recipe.rate,
        lr_scaling='none',
        warmup_fraction=0.1,
        min_lr=1e-6,
        adapter_lr_multiplier=recipe.lora,
    )
    epochs = max(1, steps * batch // len(archive))
    objective.set_schedule(steps, steps / epochs)
    optimizer = build_optimizer(objective, config, batch, 'bf16-mixed')
    schedule = build_schedule(optimizer, config, steps, epochs, batch)
    losses: list[Tensor] = []
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(archive))])
        rows, order = archive[order[:batch].to(device)], order[batch:]
        image = prepare(domain.image[rows], source.size, *stats)
        with torch.autocast(device.type, torch.bfloat16):
            found = objective({'image': image}, step)
        loss = torch.stack([x.float() for x in found.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        for part in objective.clipped:
            clip_grad_norm_(part.parameters(), 3.0)
        objective.before_step(step)
        optimizer.step()
        objective.after_step(step + 1)
        schedule.step()
        losses.append(loss.detach())
    told = torch.stack(losses).tolist()
    count = max(1, steps // 20)
    numbers = {
        'steps': steps,
        'loss': [round(sum(told[:count]) / count, 4), round(sum(told[-count:]) / count, 4)],
        'trained': sum(p.numel() for p in vit.parameters() if p.requires_grad),
    }
    if adapter is not None:
        state, names = objective.final_backbone.state_dict(), set(trainable_names(vit))
        save_file({k: v.cpu().bfloat16().contiguous() for k, v in state.items() if k in names}, adapter)
    final = objective.final_backbone
    final.mask_token = None  # of the objective alone; sources have none
    return merge_lora(final).eval(), numbers  # type: ignore[return-value]
