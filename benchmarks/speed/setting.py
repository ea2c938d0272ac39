"""Settings shared by all contenders: model, images, crops, precision, and the step around a loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from explora_geo._compat import fuse_attention
from explora_geo.bands import RGB
from explora_geo.devices import faster_precision
from explora_geo.models.heads import HeadConfig
from explora_geo.transforms import MultiCrop, ViewsConfig


def read_images(folder: Path, count: int, size: int) -> Tensor:
    """Read evenly spaced images from class folders, normalized, shape (count, 3, size, size)."""
    from explora_geo.datasets import FolderDataset
    from explora_geo.datasets.files import evenly_spaced

    dataset = FolderDataset(folder, size=size)
    if len(dataset) < count:
        raise FileNotFoundError(f'{folder} has {len(dataset)} images in class folders, {count} required')
    images = torch.stack([dataset[i]['image'] for i in evenly_spaced(len(dataset), count)]) / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (images - mean) / std


@dataclass(frozen=True)
class Setting:
    """Workload of one step."""

    model: str = 'vit_base_patch16_224'  # backbone by timm's name
    batch: int = 8  # images per step
    image_size: int = 224  # side of images and of global crops, pixels
    local_size: int = 96  # side of local crops, pixels
    num_local: int = 8  # local crops per image
    mask_ratio: float = 0.75  # share of the patches that MAE removes
    decoder_depth: int = 8  # blocks of MAE's decoder, of width 512 with 16 heads
    head: HeadConfig = field(default_factory=lambda: HeadConfig(65536, 2048, 256))  # size of DINOv2's head
    precision: Literal['bf16', 'fp32'] | None = None  # matrix precision; the faster one here by default
    images: Path | None = Path('tests/data/eurosat_rgb/test')  # class folders; random images if None
    device: str = 'cuda' if torch.cuda.is_available() else 'cpu'  # device of the steps
    fused: bool = False  # fused attention in bfloat16 on a CPU, too: slower, but as memory-lean as on a GPU

    def __post_init__(self) -> None:
        """Check the values and choose the precision."""
        if self.precision is None:
            object.__setattr__(self, 'precision', 'bf16' if faster_precision() == 'bf16-mixed' else 'fp32')
        if self.precision not in ('bf16', 'fp32'):
            raise ValueError(f'precision must be bf16 or fp32, got {self.precision!r}')
        if self.batch < 1:
            raise ValueError(f'batch must be at least 1, got {self.batch}')

    @property
    def plain_attention(self) -> bool:
        """Whether to use unfused attention, the faster way in bfloat16 on a CPU, for every contender."""
        return self.precision == 'bf16' and self.device == 'cpu' and not self.fused

    def batch_images(self) -> Tensor:
        """Return images, shape (B, 3, H, W)."""
        size = self.image_size
        if self.images is None:
            return torch.randn(self.batch, 3, size, size).to(self.device)
        return read_images(self.images, self.batch, size).to(self.device)

    def views(self) -> list[Tensor]:
        """Return their crops, drawn once: global (2·B, 3, H, W) and local (n·B, 3, h, w)."""
        config = ViewsConfig(self.image_size, self.local_size, self.num_local)
        torch.manual_seed(0)
        return [v.to(self.device) for v in MultiCrop(config, RGB)(self.batch_images())]

    def describe(self, objective: str) -> dict[str, Any]:
        """Return the values that identify a measurement, JSON-ready."""
        values = {k: v for k, v in vars(self).items() if k not in ('head', 'images', 'fused')}
        return {'objective': objective, **values}


class Step:
    """A training step: loss, backward, AdamW on trainable weights, and updates such as a teacher's."""

    def __init__(
        self, setting: Setting, module: nn.Module, loss: Callable[[], Tensor], after: Callable[[], Any] = int
    ) -> None:
        """Initialize a step."""
        self.module, self.loss, self.after = module.to(setting.device).train(), loss, after
        trained = [p for p in module.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self.kind, self.bf16 = torch.device(setting.device).type, setting.precision == 'bf16'
        fuse_attention(module, not setting.plain_attention)

    def __call__(self) -> float:
        """Run the step and return the loss."""
        with torch.autocast(self.kind, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.after()
        return float(loss.detach())


Contenders = Mapping[str, Callable[[Setting], Step]]
