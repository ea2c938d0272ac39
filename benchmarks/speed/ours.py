"""Steps of this package."""

from functools import partial

from torch import Tensor

from benchmarks.speed.setting import Contenders, Optimised, Setting
from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE, DINOv2
from explora_geo.transforms import ViewsConfig


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


def mae_step(setting: Setting, adaptation: str, vit: ViT | None = None) -> Optimised:
    """M-ExPLoRA, or full training, with a decoder that trains likewise.

    Args:
        setting: The work.
        adaptation: What trains.
        vit: Another backbone, ready to train.
    """
    vit = vit or backbone(setting, MAE, adaptation)
    objective = MAE(vit, setting.mask_ratio, decoder_depth=setting.decoder_depth, decoder_num_heads=16)
    if adaptation != 'full':
        # As if it came with the weights: then LoRA alone trains in it.
        explora(objective.decoder, objective.decoder_adaptation)
    image = setting.batch_images()

    def loss() -> Tensor:
        return sum(objective({'image': image}, 0).values())  # type: ignore[return-value]

    return Optimised(setting, objective, loss)


def dinov2_step(setting: Setting, adaptation: str, vit: ViT | None = None) -> Optimised:
    """D-ExPLoRA, or full training, with heads that train in full.

    Args:
        setting: The work.
        adaptation: What trains.
        vit: Another backbone, ready to train.
    """
    vit = vit or backbone(setting, DINOv2, adaptation)
    crops = ViewsConfig(setting.image_size, setting.local_size, setting.num_local)
    objective = DINOv2(vit, setting.head, views=crops, freeze_last_layer=0, head_warmup=0)
    objective.plan(1000, 1000)
    views = setting.views()

    def loss() -> Tensor:
        return sum(objective({'views': views, 'image': views[0]}, 500).values())  # type: ignore[return-value]

    return Optimised(setting, objective, loss, lambda: objective.after_step(500))


MAE_STEPS: Contenders = {
    'explora_geo, M-ExPLoRA-[L]-r32': partial(mae_step, adaptation='[L]-r32'),
    'explora_geo, all weights': partial(mae_step, adaptation='full'),
}
DINOV2_STEPS: Contenders = {
    'explora_geo, D-ExPLoRA-[L]-r32': partial(dinov2_step, adaptation='[L]-r32'),
    'explora_geo, all weights': partial(dinov2_step, adaptation='full'),
}
