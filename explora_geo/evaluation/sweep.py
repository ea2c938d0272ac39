"""The paper's linear probe: learning rates x blocks x pooling, all trained in one pass."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from explora_geo.evaluation.features import FeatureTable
from explora_geo.evaluation.probes import Choice

#: Momentum of SGD, without weight decay and with a cosine schedule to zero.
MOMENTUM = 0.9
#: Learning rates for a batch of 256 (appendix D.1).
LEARNING_RATES = (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


@dataclass(frozen=True)
class SweepConfig:
    """Settings of the sweep; the defaults are the paper's (appendix D.1, which follows DINOv2).

    Attributes:
        learning_rates: Rates for a batch of 256; they scale with the batch.
        blocks: Numbers of last blocks whose class tokens are read, one variant each.
        epochs: Length in epochs of `iterations` steps.
        iterations: Steps per epoch.
        batch_size: Images per step; all if there are fewer.
        seed: Seed of weights and image order.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    blocks: tuple[int, ...] = (1, 4)
    epochs: int = 10
    iterations: int = 1500
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('epochs', 'iterations', 'batch_size'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f'learning_rates must be positive, got {self.learning_rates}')
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f'blocks must be at least 1, got {self.blocks}')


class SweepRow(NamedTuple):
    """Accuracy of one configuration."""

    blocks: int  # last blocks whose class tokens are read
    average: bool  # whether the mean patch token of the last block is appended
    lr: float  # learning rate for a batch of 256
    validation: float  # accuracy in [0, 1]
    test: float  # accuracy in [0, 1]

    @property
    def setting(self) -> str:
        """Name of the configuration."""
        tokens = 'cls + avg' if self.average else 'cls'
        plural = 'block' if self.blocks == 1 else f'{self.blocks} blocks'
        return f'{tokens}, last {plural}, lr {self.lr:g}'


class Segment(NamedTuple):
    """Feature columns read by the same variants."""

    columns: slice
    users: slice  # variants that read them
    weight: Tensor  # the classifiers' weights by column, shape (C, V'·R·K)
    velocity: Tensor  # decayed sum of gradients of SGD with momentum, same shape


class BatchedLinear:
    """Linear classifiers, one per feature variant and learning rate.

    The `variants` (number of blocks, whether the average is read) are slices of one vector `(average, class
    token of the last block, of the one before, …)`. Each column is multiplied once for all variants and
    learning rates that read it: few wide products take two thirds of the time of many narrow ones.
    """

    def __init__(
        self, dim: int, classes: int, blocks: Sequence[int], rates: int, generator: torch.Generator
    ) -> None:
        """Initialize weights as DINOv2, normal with standard deviation 0.01, and zero biases, (V, R, K)."""
        counts = sorted(set(blocks))
        self.variants = [(n, average) for n in counts for average in (False, True)]
        self.bias = torch.zeros(len(self.variants), rates, classes)
        self._bias_velocity = torch.zeros_like(self.bias)
        cuts = itertools.pairwise([0, dim, *(dim * (1 + n) for n in counts)])
        # Every second variant reads the average; later variants read tokens of earlier blocks.
        users = [slice(1, None, 2), *(slice(2 * i, None) for i in range(len(counts)))]
        self.segments = []
        for (start, stop), used in zip(cuts, users, strict=True):
            weight = 0.01 * torch.randn(self.bias[used].numel(), stop - start, generator=generator)
            weight = weight.T.contiguous()
            self.segments.append(Segment(slice(start, stop), used, weight, torch.zeros_like(weight)))

    def __call__(self, features: Tensor) -> Tensor:
        """Compute the scores of all classifiers by variant, (B, F) -> (B, V, R, K)."""
        scores = self.bias.expand(len(features), *self.bias.shape).clone()
        for columns, users, weight, _ in self.segments:
            scores[:, users] += (features[:, columns] @ weight).unflatten(1, (-1, *self.bias.shape[1:]))
        return scores

    def step(
        self, features: Tensor, target: Tensor, rates: Tensor, factor: float = 1.0, momentum: float = 0.0
    ) -> None:
        """Take a step of SGD on the mean cross-entropy of each classifier.

        The gradient with respect to the scores is softmax minus target, so no graph is needed; weight
        gradients are accumulated directly into the velocity. Features are (B, F), classes (B,), rates (R,);
        the factor is the schedule's.
        """
        scores = self(features)
        # Several times faster than `softmax` along the short class axis.
        gradient = (scores - scores.amax(-1, keepdim=True)).exp_()
        gradient /= gradient.sum(-1, keepdim=True)
        gradient[torch.arange(len(target)), ..., target] -= 1
        gradient *= (rates / len(target)).unsqueeze(1)
        for columns, users, weight, velocity in self.segments:
            velocity.addmm_(features[:, columns].T, gradient[:, users].flatten(1), beta=momentum)
            weight.sub_(velocity, alpha=factor)
        self._bias_velocity.mul_(momentum).add_(gradient.sum(0))
        self.bias.sub_(self._bias_velocity, alpha=factor)


def linear_sweep(
    train: FeatureTable, val: FeatureTable, test: FeatureTable, config: SweepConfig = SweepConfig()
) -> tuple[list[SweepRow], Choice]:
    """Train all configurations at once on cached features.

    The classifiers share nothing and momentum is linear in the gradient, so scaling gradients by learning
    rates and one schedule factor is equivalent to one optimizer per classifier.

    Returns:
        Accuracies of all configurations, and the one that is best on validation with its test hits.

    Raises:
        ValueError: If the features hold fewer blocks than the sweep reads, or only one class.
    """
    available, count = train.cls.shape[1], max(config.blocks)
    if count > available:
        raise ValueError(f'the sweep reads the last {count} blocks, but the features contain {available}')
    known = train.label.unique()  # ascending; images of any other class always count as wrong
    if len(known) < 2:
        raise ValueError('a probe needs at least two classes among the training labels, got one')
    generator = torch.Generator().manual_seed(config.seed)
    width, rates = train.cls.shape[2], torch.tensor(config.learning_rates)
    model = BatchedLinear(width, len(known), config.blocks, len(rates), generator)
    batch = min(config.batch_size, len(train.label))
    steps = config.epochs * config.iterations
    inputs, target = train.stacked(count), torch.searchsorted(known, train.label)
    position = len(inputs)
    for step in range(steps):
        if position + batch > len(inputs):
            order, position = torch.randperm(len(inputs), generator=generator), 0
        index = order[position : position + batch]
        position += batch
        # Takes a sixth of the time of `inputs[index]`.
        drawn = inputs.index_select(0, index).float()
        factor = (1 + math.cos(math.pi * step / steps)) / 2
        model.step(drawn, target[index], rates * batch / 256, factor, MOMENTUM)
    hits = []
    for table in (val, test):
        parts = zip(table.stacked(count).split(4096), table.label.split(4096), strict=True)
        right = [(known[model(x.float()).argmax(-1)] == y[:, None, None]).flatten(1) for x, y in parts]
        hits.append(torch.cat(right).T)  # (V·R, N)
    settings = [(*variant, lr) for variant in model.variants for lr in config.learning_rates]
    validation, tested = (found.float().mean(1).tolist() for found in hits)
    rows = [SweepRow(*s, v, t) for s, v, t in zip(settings, validation, tested, strict=True)]
    best = max(range(len(rows)), key=lambda i: rows[i].validation)
    return rows, Choice(hits[1][best].numpy(), rows[best].validation, rows[best].setting)
