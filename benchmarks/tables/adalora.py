"""AdaLoRA-r8 (Zhang et al. 2023) by peft on Q and V of every block: a row of table 1."""

from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.models import ViT
from explora_geo.trainers import ClassificationTask
from explora_geo.trainers.optim import run_length

_NAME = 'default'
#: Rank at the start and mean rank at the end: peft's defaults, with which a ViT-L has the printed 1.2M.
RANKS = (12, 8)


class SplitQKV(nn.Module):
    """A fused layer of queries, keys and values as three, `q`, `k` and `v`: peft adapts whole layers."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def __init__(self, fused: Any) -> None:
        """Take over thirds of a fused linear layer, `weight` of shape (3D, D)."""
        super().__init__()
        biases = [None] * 3 if fused.bias is None else fused.bias.chunk(3)
        for name, weight, bias in zip('qkv', fused.weight.chunk(3), biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device='meta')
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
            if bias is not None:
                layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side, (..., D) -> (..., 3D)."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def add_adalora(vit: ViT) -> AdaLoraModel:
    """Split `qkv` of every block in place and adapt Q and V; nothing else of the backbone trains.

    The length is set when it is known, by `total_step` of the configuration. Returns peft's wrapper, which
    shares the backbone's modules and allocates the ranks.
    """
    block: Any
    for block in vit.blocks:
        block.attn.qkv = SplitQKV(block.attn.qkv)
    config = AdaLoraConfig(init_r=RANKS[0], target_r=RANKS[1], target_modules=['q', 'v'], total_step=2**31)
    return AdaLoraModel(vit, config, _NAME)


class AdaLoRATask(ClassificationTask):
    """Classification tuned by AdaLoRA-r8 on Q and V of every block."""

    def configure_models(self) -> None:
        """Build the backbone as for LoRA-r8, and put AdaLoRA in its place."""
        super().configure_models()
        # In a tuple, so that the wrapper is no module of the task a second time.
        self._tuner = (add_adalora(self.model.backbone),)
        self.model.train(self.training)

    @property
    def tuner(self) -> AdaLoraModel:
        """Allocates the ranks."""
        return self._tuner[0]

    @property
    def settings(self) -> Any:
        """The configuration of peft."""
        return self.tuner.peft_config[_NAME]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Ranks fall until the last step."""
        self.settings.total_step = run_length(self.trainer).total
        return super().configure_optimizers()

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """In training the loss with AdaLoRA's regulariser: P and Q of every update are to be orthogonal."""
        found = super().loss(scores, target)
        return found + self.settings.orth_reg_weight * self.irregularity() if self.training else found

    def irregularity(self) -> Tensor:
        """Mean distance of A A^T and B^T B from the unit matrix (equation 4)."""
        found = []
        for name, p in self.model.backbone.named_parameters():
            if 'lora_A' in name or 'lora_B' in name:
                product = F.linear(p, p) if 'lora_A' in name else F.linear(p.T, p.T)
                found.append((product - torch.eye(len(product), device=p.device)).norm())
        return torch.stack(found).mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and allocate the ranks by the gradients that are still there."""
        super().optimizer_step(*args, **kwargs)
        self.tuner.update_and_allocate(self.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what ranks are allocated by."""
        super().on_save_checkpoint(checkpoint)
        allocator = self.tuner.rankallocator
        checkpoint['adalora'] = {
            'rank_pattern': self.settings.rank_pattern,
            **{name: dict(getattr(allocator, name)) for name in ('ipt', 'exp_avg_ipt', 'exp_avg_unc')},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read it back."""
        super().on_load_checkpoint(checkpoint)
        kept = dict(checkpoint['adalora'])
        self.settings.rank_pattern = kept.pop('rank_pattern')
        for name, values in kept.items():
            setattr(self.tuner.rankallocator, name, values)
