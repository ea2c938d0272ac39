"""Steps of this package."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora, hold_frozen
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE, DINOv2, Objective, PhaseConfig
from explora_geo.trainers.kernels import compile_blocks, many_graphs
from explora_geo.transforms import ViewsConfig

from .setting import Contenders, Optimised, Setting


def backbone(setting: Setting, objective: type[MAE | DINOv2], adaptation: str) -> ViT:
    """An adapted backbone as the objective needs it."""
    vit = create_vit(
        setting.model,
        img_size=setting.image_size,
        learned_position=objective is DINOv2,
        **objective.backbone_options,
    )
    if vit.mask_token is not None:
        vit.mask_token.data.fill_(0.02)  # as if loaded: it then belongs to the frozen part
    explora(vit, ExPLoRAConfig.parse(adaptation))
    return vit


def mae_step(
    setting: Setting,
    adaptation: str,
    vit: ViT | None = None,
    checkpointing: bool = False,
    compiled: bool = False,
    lean: bool = False,
) -> Optimised:
    """M-ExPLoRA, or full training, with a decoder that trains likewise.

    Args:
        setting: The work.
        adaptation: What trains.
        vit: Another backbone, ready to train.
        checkpointing: Recompute the backbone's activations in the backward pass.
        compiled: Let `torch.compile` write the kernels of blocks.
        lean: Hold frozen matrices in bfloat16 only.
    """
    vit = vit or backbone(setting, MAE, adaptation)
    vit.grad_checkpointing = checkpointing
    objective = MAE(vit, setting.mask_ratio, decoder_depth=setting.decoder_depth, decoder_num_heads=16)
    if adaptation != 'full':
        # As if it came with the weights: then LoRA alone trains in it.
        explora(objective.decoder, objective.decoder_adaptation)
    if compiled:
        compile_blocks(objective)
    if lean:
        _hold(objective, setting)
    images = {'image': setting.batch_images()}

    def loss() -> Tensor:
        with many_graphs() if compiled else nullcontext():
            return sum(objective(images, 0).values())  # type: ignore[return-value]

    return Optimised(setting, objective, loss)


def dinov2_step(
    setting: Setting,
    adaptation: str,
    vit: ViT | None = None,
    checkpointing: bool = False,
    compiled: bool = False,
    lean: bool = False,
) -> Optimised:
    """D-ExPLoRA, or full training, with heads that train in full; arguments as of `mae_step`."""
    vit = vit or backbone(setting, DINOv2, adaptation)
    vit.grad_checkpointing = checkpointing
    crops = ViewsConfig(setting.image_size, setting.local_size, setting.num_local)
    phases = PhaseConfig(freeze_last_layer_steps=0, head_warmup_steps=0)
    objective = DINOv2(vit, setting.head, views=crops, phases=phases)
    objective.plan(1000, 1000)
    if compiled:
        compile_blocks(objective)
    if lean:
        _hold(objective, setting)
    views = setting.views()

    def loss() -> Tensor:
        with many_graphs() if compiled else nullcontext():
            return sum(objective({'views': views, 'image': views[0]}, 500).values())  # type: ignore[return-value]

    return Optimised(setting, objective, loss, lambda: objective.after_step(500))


def _hold(objective: Objective, setting: Setting) -> None:
    """What the task does with `frozen_dtype: bfloat16`."""
    if setting.precision != 'bf16':
        raise ValueError('frozen matrices in bfloat16 go with products in bfloat16')
    hold_frozen(objective, torch.bfloat16)


_M, _D = 'explora_geo, M-ExPLoRA-[L]-r32', 'explora_geo, D-ExPLoRA-[L]-r32'
MAE_STEPS: Contenders = {
    _M: partial(mae_step, adaptation='[L]-r32'),
    f'{_M}, gradient checkpointing': partial(mae_step, adaptation='[L]-r32', checkpointing=True),
    f'{_M}, frozen in bf16': partial(mae_step, adaptation='[L]-r32', lean=True),
    'explora_geo, all weights': partial(mae_step, adaptation='full'),
}
DINOV2_STEPS: Contenders = {
    _D: partial(dinov2_step, adaptation='[L]-r32'),
    f'{_D}, gradient checkpointing': partial(dinov2_step, adaptation='[L]-r32', checkpointing=True),
    f'{_D}, frozen in bf16': partial(dinov2_step, adaptation='[L]-r32', lean=True),
    'explora_geo, all weights': partial(dinov2_step, adaptation='full'),
}


def _compiled(step: Callable[..., Optimised], name: str) -> Contenders:
    ours = partial(step, adaptation='[L]-r32', compiled=True)
    return {
        f'{name}, compiled': ours,
        f'{name}, compiled, frozen in bf16': partial(ours, lean=True),
        'explora_geo, all weights, compiled': partial(step, adaptation='full', compiled=True),
    }


#: Steps whose first one takes minutes, by objective.
COMPILED_STEPS: dict[str, Contenders] = {'mae': _compiled(mae_step, _M), 'dinov2': _compiled(dinov2_step, _D)}
