"""Training steps of this package."""

import itertools
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from explora_geo._compat import many_graphs
from explora_geo.adaptation import ExPLoRAConfig, explora, hold_frozen
from explora_geo.devices import compile_blocks
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE, DINOv2, GramConfig, PhaseConfig
from explora_geo.transforms import ViewsConfig

from .setting import Contenders, Setting, Step


def backbone(setting: Setting, objective: type[MAE | DINOv2], adaptation: str, **options: Any) -> ViT:
    """Return an adapted backbone for the objective; options are those of `create_vit`."""
    options = {'learned_position': objective is DINOv2, **objective.backbone_options, **options}
    vit = create_vit(setting.model, img_size=setting.image_size, **options)
    if vit.mask_token is not None:
        vit.mask_token.data.fill_(0.02)  # as if loaded, so it belongs to the frozen part
    explora(vit, ExPLoRAConfig.parse(adaptation))
    return vit


def _depth(model: str) -> int:
    with torch.device('meta'):
        return create_vit(model).depth


def build_step(
    setting: Setting,
    kind: type[MAE | DINOv2],
    adaptation: str,
    vit: ViT | None = None,
    checkpointing: bool = False,
    compiled: bool = False,
    lean: bool = False,
    drop_path_rate: float = 0.0,
    half: bool = False,
    gram: bool = False,
) -> Step:
    """Build a step of an objective; MAE's decoder trains as the encoder does, DINOv2's heads in full."""
    if lean and setting.precision != 'bf16':
        raise ValueError('frozen matrices in bfloat16 go with products in bfloat16')
    if half:  # the last half of the blocks
        adaptation = f'{adaptation}@{_depth(setting.model) // 2}'
    vit = vit or backbone(setting, kind, adaptation, drop_path_rate=drop_path_rate)
    vit.grad_checkpointing = checkpointing
    objective: MAE | DINOv2
    if kind is MAE:
        objective = MAE(vit, setting.mask_ratio, decoder_depth=setting.decoder_depth, decoder_num_heads=16)
        batch: dict[str, Any] = {'image': setting.batch_images()}
        if adaptation != 'full':  # as if loaded with the weights, so only LoRA trains in it
            explora(objective.decoder, objective.decoder_adaptation)
    else:
        crops = ViewsConfig(setting.image_size, setting.local_size, setting.num_local)
        phases = PhaseConfig(freeze_last_layer_steps=0, head_warmup_steps=0)
        anchored = GramConfig(start_steps=0) if gram else None
        objective = DINOv2(vit, setting.head, views=crops, phases=phases, gram=anchored)
        views = setting.views()
        batch = {'views': views, 'image': views[0]}
    objective.set_schedule(1000, 1000)
    if compiled:
        compile_blocks(objective)
    if lean:
        hold_frozen(objective, torch.bfloat16)

    steps = itertools.cycle((500, 501))  # Gram anchoring runs every second step

    def loss() -> Tensor:
        with many_graphs() if compiled else nullcontext():
            return sum(objective(batch, next(steps)).values())  # type: ignore[return-value]

    return Step(setting, objective, loss, lambda: objective.after_step(500))


#: Suffix of a step's name, and its options; each is a row.
_VARIANTS: dict[str, dict[str, Any]] = {
    '': {},
    ', gradient checkpointing': {'checkpointing': True},
    ', frozen in bf16': {'lean': True},
    ', stochastic depth 0.3': {'drop_path_rate': 0.3},
    ', last half of the blocks': {'half': True},
}
#: Only for D-ExPLoRA.
_DINOV2: dict[str, dict[str, Any]] = {', Gram anchoring': {'gram': True}}
#: Steps whose first run takes minutes.
_COMPILED: dict[str, dict[str, Any]] = {
    ', compiled': {'compiled': True},
    ', compiled, frozen in bf16': {'compiled': True, 'lean': True},
}


def _steps(kind: type[MAE | DINOv2], variants: dict[str, dict[str, Any]]) -> Contenders:
    """Return the steps of an objective by name; the last trains all weights."""
    ours, full = (partial(build_step, kind=kind, adaptation=what) for what in ('[L]-r32', 'full'))
    name, end = f'explora_geo, {kind.letter}-ExPLoRA-[L]-r32', next(iter(variants))
    own = _DINOV2 if kind is DINOv2 and variants is _VARIANTS else {}
    steps = {f'{name}{suffix}': partial(ours, **options) for suffix, options in {**variants, **own}.items()}
    return {**steps, f'explora_geo, all weights{end}': partial(full, **variants[end])}


STEPS, COMPILED = (
    {'mae': _steps(MAE, variants), 'dinov2': _steps(DINOv2, variants)} for variants in (_VARIANTS, _COMPILED)
)
