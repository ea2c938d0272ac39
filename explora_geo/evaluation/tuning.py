"""Fine-tuning on few labels with LoRA, as the paper fine-tunes (section B, table 1)."""

import copy

import torch
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models.vit import Features, ViT

# LoRA-r8 on Q and V of every block, nothing else of the backbone (appendix B).
LORA_R8 = ExPLoRAConfig(unfrozen_blocks=(), rank=8, train_norms=False, train_cls_token=False)


class _Classifier(nn.Module):
    """Backbone, mean patch token, batch norm without parameters, linear layer (MAE's probing head)."""

    def __init__(self, vit: ViT, classes: int) -> None:
        super().__init__()
        self.vit = vit
        self.norm = nn.BatchNorm1d(vit.embed_dim, affine=False, eps=1e-6)
        self.head = nn.Linear(vit.embed_dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        features: Features = self.vit(image)
        return self.head(self.norm(features.patches.flatten(1, 2).mean(1)))


def tune_few_labels(
    vit: ViT,
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    seed: int,
    epochs: int = 20,
    batch_size: int = 32,
    lr: float = 2e-3,
    config: ExPLoRAConfig = LORA_R8,
) -> float:
    """Tune a copy of a plain backbone on few labelled images and test it.

    Args:
        vit: Backbone without LoRA (merge it first); not changed.
        images: Normalised training images, shape (N, C, H, W).
        labels: Classes, shape (N,).
        test_images: Normalised test images, shape (M, C, H, W).
        test_labels: Classes, shape (M,).
        seed: Seed of the head, the order and the flips.
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Highest learning rate, warm-up over a tenth of the steps, cosine to zero.
        config: What trains in the backbone.

    Returns:
        Test accuracy in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Classifier(copy.deepcopy(vit), int(labels.max()) + 1)
        explora(model.vit, config)
    model.to(vit.cls_token.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    parts = -(-len(images) // batch_size)  # of equal size: a last batch of one image has no variance
    steps = epochs * parts
    schedule = CosineWarmupScheduler(optimizer, warmup_epochs=steps // 10, max_epochs=steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(images), generator=generator).tensor_split(parts):
            batch = _flip(images[index], generator)
            loss = F.cross_entropy(model(batch), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        hits = [
            (model(x).argmax(1) == y).sum()
            for x, y in zip(test_images.split(250), test_labels.split(250), strict=True)
        ]
    return float(sum(hits)) / len(test_images)


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror a batch left to right and top to bottom at random: nadir images have no up."""
    for axis in (-1, -2):
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(axis)
    return images
