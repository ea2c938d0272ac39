"""Scores of frozen features on a GPU or CPU: k-NN, linear probe, few labels, and paired intervals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from explora_geo.models.readout import turn
from explora_geo.models.vit import ViT

from .domains import Domain

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3)
FEW, DRAWS, NEIGHBORS = 10, 5, 20
CHOOSE = 2_000  # images for choosing rates and lengths
NORMAL = 1.96  # standard errors on either side of a mean in its 95 % interval


class Hits(NamedTuple):
    """Whether each test image is classified correctly, shape (M,), or in which share of draws."""

    knn: Tensor
    linear: Tensor
    few: Tensor

    @property
    def means(self) -> list[float]:
        """Return accuracies in [0, 1]."""
        return [round(float(h.float().mean()), 5) for h in self]


def prepare(image: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Resize and normalize images given as bytes, shape (B, 3, H, W)."""
    image = image.float() / 255
    if image.shape[-1] != size:
        image = F.interpolate(image, (size, size), mode='bicubic', antialias=True).clamp(0, 1)
    return (image - mean) / std


@torch.inference_mode()
def features(
    vit: ViT, read: Callable[[Tensor], Tensor], index: Tensor, turns: int = 1, block: int = -1
) -> Tensor:
    """Return mean patch tokens of images by index, averaged over orientations, shape (N, D)."""
    vit.eval()
    rows = []
    for part in index.split(512):
        image = read(part)
        total = torch.zeros((), device=image.device)
        for number in range(turns):
            with torch.autocast(image.device.type, torch.bfloat16):
                (found,) = vit.intermediate(turn(image, number), [block])
            total = total + found.patches.float().flatten(1, 2).mean(1) / turns
        rows.append(total)
    return torch.cat(rows)


@torch.inference_mode()
def patches(vit: ViT, read: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
    """Return patch tokens of images by index, shape (N, L, D), in half precision."""
    vit.eval()
    rows = []
    for part in index.split(512):
        with torch.autocast(index.device.type, torch.bfloat16):
            rows.append(vit(read(part)).patches.flatten(1, 2).half())
    return torch.cat(rows)


def knn_hits(train: Tensor, label: Tensor, test: Tensor, wanted: Tensor, neighbors: int) -> Tensor:
    """Classify by cosine k-NN with inverse distance weights, as `explora_geo.evaluation.probes`."""
    near, rows = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(min(neighbors, len(train)))
    votes = near.new_zeros(len(test), int(label.max()) + 1)
    votes.scatter_add_(1, label[rows], 1 / (1 - near).clamp(min=1e-6))
    return votes.argmax(1) == wanted


def logistic(x: Tensor, y: Tensor, penalties: Sequence[float], classes: int, steps: int = 100) -> Tensor:
    """Fit multinomial logistic regressions with several penalties at once; the bias is not penalized.

    Accelerated descent with Boehning's (1992) bound 0.5 X'X on the Hessian, diagonal in the axes of the
    features: no step waits for the device, as a line search would. Standardized features (N, D), classes (N,)
    and P inverse strengths C, as in scikit-learn, -> weights with the bias as the last row, (P, D + 1, K).
    """
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    basis = torch.cat([x @ axes, torch.ones_like(x[:, :1])], 1)
    decay = torch.tensor([1 / (c * len(x)) for c in penalties], device=x.device)[:, None]
    decay = torch.cat([decay.expand(-1, x.shape[1]), torch.zeros_like(decay)], 1)[..., None]
    curve = 0.5 * torch.cat([values.clamp(min=0), values.new_ones(1)])[None, :, None] + decay
    wanted = F.one_hot(y, classes).float()
    weight = x.new_zeros(len(penalties), x.shape[1] + 1, classes)
    ahead, momentum = weight, 1.0
    for _ in range(steps):
        wrong = (basis @ ahead).softmax(-1) - wanted
        new = ahead - (basis.T @ wrong / len(x) + decay * ahead) / curve
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / following * (new - weight)
        weight, momentum = new, following
    return torch.cat([axes @ weight[:, :-1], weight[:, -1:]], 1)


def _linear(train: Tensor, val: Tensor, test: Tensor, *labels: Tensor) -> Tensor:
    """Return test hits of a regression fit on the first part, with the penalty chosen on the second."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    train, val, test = ((x - mean) / std for x in (train, val, test))
    weights = logistic(train, labels[0], PENALTIES, int(labels[0].max()) + 1)
    chosen, hits = (
        (x @ weights[:, :-1] + weights[:, -1:]).argmax(-1) == y
        for x, y in zip((val, test), labels[1:], strict=True)
    )
    return hits[chosen.float().mean(1).argmax()]


def score(domain: Domain, train: Tensor, val: Tensor, test: Tensor) -> Hits:
    """Score features of a domain's three labeled parts."""
    y, *others = (domain.label[i] for i in (domain.train, domain.val, domain.test))
    share = len(y) // len(y.unique())
    knn = knn_hits(train, y, test, others[1], min(NEIGHBORS, share))
    linear = _linear(train, val, test, y, *others)
    if share <= FEW:
        return Hits(knn, linear, linear)
    total = torch.zeros(len(test), device=test.device)
    for draw in range(DRAWS):
        mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(draw)).to(y.device)
        rows = torch.cat([mixed[y[mixed] == c][:FEW] for c in y.unique()])
        total += _linear(train[rows], val, test, y[rows], *others)
    return Hits(knn, linear, total / DRAWS)


def gain(before: Tensor, after: Tensor) -> list[float]:
    """Return the mean paired difference of hits and the half-width of its 95 % interval over test images."""
    difference = after.float() - before.float()
    half = NORMAL * float(difference.std()) / len(difference) ** 0.5
    return [round(float(difference.mean()), 5), round(half, 5)]


def draw_labels(domain: Domain, budget: int, seed: int) -> Tensor:
    """Draw archive positions of *budget* labels per class (0: all), excluding images that choose settings."""
    free = ~torch.isin(domain.archive, domain.val)
    y = domain.label[domain.archive]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    order = order[free[order]]
    return torch.cat([order[y[order] == c][: budget or None] for c in y.unique()])


def budget_hits(domain: Domain, archive: Tensor, val: Tensor, test: Tensor, budget: int) -> Tensor:
    """Return the share of label draws in which a linear probe is correct on each test image, shape (M,)."""
    y, *others = (domain.label[i] for i in (domain.archive, domain.val, domain.test))
    draws = [draw_labels(domain, budget, seed) for seed in range(DRAWS if budget else 1)]
    hits = [_linear(archive[rows], val, test, y[rows], *others).float() for rows in draws]
    return torch.stack(hits).mean(0)


def validate(domain: Domain, archive: Callable[[Tensor], Tensor], train: Tensor, val: Tensor) -> list[float]:
    """Score k-NN and linear probe on archive images used neither to fit nor to choose a penalty.

    If none are left (AID), validate on the images that choose the penalty.
    """
    known = torch.cat([domain.train, domain.val])
    rows = domain.archive[~torch.isin(domain.archive, known)]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:CHOOSE]]
    found = archive(rows) if len(rows) else val
    y, chosen, wanted = (
        domain.label[i] for i in (domain.train, domain.val, rows if len(rows) else domain.val)
    )
    near = knn_hits(train, y, found, wanted, NEIGHBORS)
    right = _linear(train, val, found, y, chosen, wanted)
    return [round(float(h.float().mean()), 5) for h in (near, right)]
