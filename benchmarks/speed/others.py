"""The same training steps with alternative libraries; one that is not installed is reported as missing."""

import importlib.util
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import timm
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models import utils
from lightly.models.modules import DINOv2ProjectionHead, MAEDecoderTIMM, MaskedVisionTransformerTIMM
from torch import Tensor, nn

from explora_geo.objectives import MAE, DINOv2

from . import ours
from .ours import backbone, build_step
from .setting import Contenders, Setting, Step

RANK = 32


class SplitQKV(nn.Module):
    """A fused QKV layer split into `q`, `k` and `v`, since PEFT adapts whole layers."""

    def __init__(self, fused: Any) -> None:
        """Split a fused linear layer, `weight` of shape (3D, D), into thirds."""
        super().__init__()
        for name, weight, bias in zip('qkv', fused.weight.chunk(3), fused.bias.chunk(3), strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0], device='meta')
            layer.weight, layer.bias = (
                nn.Parameter(x.detach().clone(), requires_grad=False) for x in (weight, bias)
            )
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate queries, keys and values, (..., D) -> (..., 3D)."""
        return torch.cat([self._modules[name](x) for name in 'qkv'], dim=-1)  # type: ignore[misc]


def peft_backbone(setting: Setting, objective: type[MAE | DINOv2]) -> Any:
    """Unfreeze the last block and the norms by hand, and add PEFT's LoRA to the split Q and V elsewhere."""
    vit: Any = backbone(setting, objective, 'full')
    for block in vit.blocks:
        block.attn.qkv = SplitQKV(block.attn.qkv)
    _inject(vit, ['q', 'v'], 'blocks', len(vit.blocks))
    vit.cls_token.requires_grad = True
    return vit


def _inject(model: nn.Module, targets: list[str], layers: str, depth: int, parent: str = '') -> None:
    """Add PEFT's LoRA to all layers except the last, which trains in full, as does every norm."""
    from peft import LoraConfig, inject_adapter_in_model

    last = depth - 1
    # One regular expression of full names: PEFT's selection of layers by number differs between versions.
    numbers = '|'.join(map(str, range(last)))
    names = rf'{re.escape(parent + layers)}\.({numbers})\..*\.({"|".join(targets)})'
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), model)
    for name, parameter in model.named_parameters():
        unfrozen = name.startswith(f'{parent}{layers}.{last}.') or 'norm' in name
        parameter.requires_grad = 'lora_' in name or unfrozen


def peft_step(setting: Setting, kind: type[MAE | DINOv2]) -> Step:
    """Return a step of our objective on PEFT's backbone."""
    return build_step(setting, kind, '[L]-r32', peft_backbone(setting, kind))


def _timm(setting: Setting, **options: Any) -> Any:
    return timm.create_model(setting.model, num_classes=0, img_size=setting.image_size, **options)


def lightly_mae(setting: Setting) -> Step:
    """Build a step that trains all weights with lightly's building blocks."""
    vit = _timm(setting)
    side, image = vit.patch_embed.patch_size[0], setting.batch_images()
    encoder: Any = MaskedVisionTransformerTIMM(vit=vit)
    decoder: Any = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        patch_size=side,
        embed_dim=vit.embed_dim,
        decoder_embed_dim=512,
        decoder_depth=setting.decoder_depth,
        decoder_num_heads=16,
    )

    def loss() -> Tensor:
        size = len(image), encoder.sequence_length
        keep, masked = utils.random_token_mask(size, mask_ratio=setting.mask_ratio, device=image.device)
        x = decoder.embed(encoder.encode(images=image, idx_keep=keep))
        tokens = utils.repeat_token(decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, keep, x.type_as(tokens))
        prediction = decoder.predict(utils.get_at_index(decoder.decode(tokens), masked))
        target = utils.get_at_index(utils.patchify(image, side), masked - 1)
        return nn.functional.mse_loss(prediction.float(), utils.normalize_mean_var(target, dim=-1))

    return Step(setting, nn.ModuleList([encoder, decoder]), loss)


def huggingface_mae(setting: Setting, adapted: bool) -> Step:
    """Build a step of Hugging Face's ViTMAE, with all weights or with PEFT."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    vit = _timm(setting)
    config: Any = ViTMAEConfig(
        hidden_size=vit.embed_dim,
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=vit.blocks[0].attn.num_heads,
        intermediate_size=vit.blocks[0].mlp.fc1.out_features,
        image_size=setting.image_size,
        patch_size=vit.patch_embed.patch_size[0],
        decoder_num_hidden_layers=setting.decoder_depth,
        mask_ratio=setting.mask_ratio,
        norm_pix_loss=True,
    )
    config._attn_implementation = 'eager' if setting.plain_attention else 'sdpa'
    model: Any = ViTMAEForPreTraining(config)
    if adapted:
        _inject(model, ['q_proj', 'v_proj'], 'layers', len(vit.blocks), 'vit.')
    image = setting.batch_images()
    return Step(setting, model, lambda: model(pixel_values=image).loss)


def torchgeo_mae(setting: Setting) -> Step:
    """Build a step of TorchGeo's own task, with a decoder of the same depth and without its augmentation."""
    from torchgeo.tasks import MAE as TorchGeoMAE

    if not setting.model.endswith(f'_{setting.image_size}'):
        raise ValueError(f'it takes images of the size in {setting.model} only')
    task: Any = TorchGeoMAE(
        model=setting.model,
        transform=nn.Identity(),
        size=setting.image_size,
        mask_ratio=setting.mask_ratio,
        decoder_depth=setting.decoder_depth,
        decoder_num_heads=16,
    )
    task.log = lambda *args, **kwargs: None  # no trainer
    image = setting.batch_images()
    return Step(setting, task, lambda: task.training_step({'image': image}, 0))


def lightly_dinov2(setting: Setting) -> Step:
    """Build a step that trains all weights with lightly's building blocks; the teacher is a full copy."""
    parts: Any = nn.ModuleDict()
    head = setting.head
    for name in ('student', 'teacher'):
        vit = _timm(setting, dynamic_img_size=True)
        sizes = vit.embed_dim, head.hidden_dim, head.bottleneck_dim, head.prototypes
        trunk = MaskedVisionTransformerTIMM(vit=vit)
        parts[name] = nn.ModuleDict({'backbone': trunk, 'head': DINOv2ProjectionHead(*sizes)})
    student, teacher = (dict(parts[name].items()) for name in ('student', 'teacher'))
    # Weight normalization in lightly's head prevents a deep copy.
    parts['teacher'].load_state_dict(parts['student'].state_dict())
    parts['teacher'].requires_grad_(False)
    parts['dino'], parts['ibot'] = DINOLoss(head.prototypes), IBOTPatchLoss(head.prototypes)
    koleo, views = KoLeoLoss(), setting.views()
    crops, size = views[0], (len(views[0]), *vit.patch_embed.grid_size)

    def loss() -> Tensor:
        mask = utils.random_block_mask(size=size, device=crops.device).flatten(1)
        full = torch.cat([mask.new_zeros(len(mask), 1), mask], dim=1)
        with torch.no_grad():
            x = teacher['backbone'].encode(crops)
            cls, patches = teacher['head'](x[:, 0]), teacher['head'](x[full])
        x = student['backbone'].encode(crops, mask=full)
        own, masked = student['head'](x[:, 0]), student['head'](x[full])
        predicted = list(own.chunk(2))
        for local in views[1:]:
            small = student['head'](student['backbone'].encode(local)[:, 0])
            predicted += small.chunk(len(local) // setting.batch)
        with torch.autocast(crops.device.type, enabled=False):
            total = parts['dino']([c.float() for c in cls.chunk(2)], [p.float() for p in predicted])
            if len(patches):
                total = total + parts['ibot'](patches.float(), masked.float(), mask.view(size))
            return total + 0.1 * sum(koleo(c.float()) for c in x[:, 0].chunk(2))

    move = partial(utils.update_momentum, parts['student'], parts['teacher'], m=0.996)
    return Step(setting, parts, loss, move)


STEPS: dict[str, Contenders] = {
    'mae': {
        'PEFT on split Q, K, V': partial(peft_step, kind=MAE),
        'Hugging Face ViTMAE + PEFT': partial(huggingface_mae, adapted=True),
        'Hugging Face ViTMAE, all weights': partial(huggingface_mae, adapted=False),
        'lightly MAE, all weights': lightly_mae,
        'TorchGeo MAE, all weights': torchgeo_mae,
    },
    'dinov2': {
        'PEFT on split Q, K, V': partial(peft_step, kind=DINOv2),
        'lightly DINOv2, all weights, copied teacher': lightly_dinov2,
    },
}
#: Libraries that contenders need beyond this package's own dependencies.
NEEDS = {'TorchGeo': 'torchgeo', 'Hugging Face': 'transformers', 'PEFT': 'peft'}


def missing(name: str) -> str:
    """Return the missing library of a contender, or an empty string."""
    needed = (module for part, module in NEEDS.items() if part in name)
    return next((module for module in needed if importlib.util.find_spec(module) is None), '')


CONTENDERS: dict[str, Contenders] = {name: {**ours.STEPS[name], **STEPS[name]} for name in STEPS}


def find(objective: str, compiled: bool = False) -> Contenders:
    """Return all contenders by name, including compiled steps on request."""
    if objective not in CONTENDERS:
        raise ValueError(f'objective must be one of {", ".join(CONTENDERS)}, got {objective!r}')
    return {**CONTENDERS[objective], **(ours.COMPILED[objective] if compiled else {})}


def for_each(
    names: Iterable[str], work: Callable[[str], Any], only: str = ''
) -> tuple[dict[str, Any], dict[str, str]]:
    """Apply *work* to the first contender and to those whose name matches the expression *only*.

    Returns the results, and why the others failed: a missing library, a `ValueError` or an `ImportError`.
    """
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for position, name in enumerate(names):
        if position and not re.search(only, name):
            continue
        if lacking := missing(name):
            absent[name] = f'{lacking} is not installed'
            continue
        print(name, flush=True)
        try:
            found[name] = work(name)
        except (ImportError, ValueError) as error:
            absent[name] = str(error)
    return found, absent
