"""The paper's linear probe: learning rates x blocks x pooling, trained together in one pass."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from explora_geo.evaluation.features import FeatureTable

#: Learning rates at a batch of 256 (appendix D.1).
LEARNING_RATES = (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


@dataclass(frozen=True)
class SweepConfig:
    """The sweep; the defaults are the paper's (appendix D.1, which follows DINOv2).

    Attributes:
        learning_rates: Rates at a batch of 256; they scale with the batch.
        blocks: How many of the last blocks lend their class tokens, one variant each.
        epochs: Length in epochs of `iterations` steps.
        iterations: Steps per epoch.
        batch_size: Images per step; all of them if there are fewer.
        momentum: Of SGD, which has no weight decay and a cosine to zero.
        seed: Seed of the weights and of the order.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    blocks: tuple[int, ...] = (1, 4)
    epochs: int = 10
    iterations: int = 1500
    batch_size: int = 256
    momentum: float = 0.9
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
    """One configuration.

    Attributes:
        blocks: Last blocks whose class tokens are read.
        average: Whether the mean patch token of the last block is appended.
        lr: Learning rate at a batch of 256.
        validation: Validation accuracy in [0, 1].
        test: Test accuracy in [0, 1].
    """

    blocks: int
    average: bool
    lr: float
    validation: float
    test: float

    @property
    def setting(self) -> str:
        """Text that names the configuration."""
        tokens = 'cls + avg' if self.average else 'cls'
        plural = 'block' if self.blocks == 1 else f'{self.blocks} blocks'
        return f'{tokens}, last {plural}, lr {self.lr:g}'


class SweepResult(NamedTuple):
    """Outcome of a sweep.

    Attributes:
        rows: Every configuration.
        best: The one with the highest validation accuracy.
        hits: Whether each test image is classified correctly by the best one, shape (M,).
    """

    rows: list[SweepRow]
    best: SweepRow
    hits: NDArray[np.bool_]


class Segment(NamedTuple):
    """Columns of the features that the same variants read.

    Attributes:
        start: First column.
        stop: Column after the last.
        users: Variants that read them.
    """

    start: int
    stop: int
    users: list[int]


class BatchedLinear(nn.Module):
    """One linear classifier per feature variant and learning rate.

    The variants are slices of one vector `(average, class token of the last block, of the one before, …)`.
    Each column is multiplied once for all variants and learning rates that read it: few wide products
    take two thirds of the time of many narrow ones.
    """

    def __init__(
        self, dim: int, classes: int, blocks: Sequence[int], rates: int, generator: torch.Generator
    ) -> None:
        """Initialize with normal weights of deviation 0.01, as DINOv2.

        Args:
            dim: Width D of a token.
            classes: Number of classes K.
            blocks: Last blocks whose class tokens are read, one variant without and one with average.
            rates: Classifiers per variant R.
            generator: Source of the weights.
        """
        super().__init__()
        slices = [(dim * (not average), dim * (1 + n)) for n in blocks for average in (False, True)]
        cuts = sorted({edge for piece in slices for edge in piece})
        self.segments = [
            Segment(a, b, [v for v, (start, stop) in enumerate(slices) if start <= a and b <= stop])
            for a, b in itertools.pairwise(cuts)
        ]
        self.shape = (len(slices), rates, classes)
        self.weight = nn.ParameterList(
            nn.Parameter(0.01 * torch.randn(len(users) * rates * classes, b - a, generator=generator))
            for a, b, users in self.segments
        )
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def forward(self, features: Tensor) -> Tensor:
        """Scores of all classifiers by variant, (B, F) -> (B, V, R, K)."""
        scores = self.bias.expand(len(features), *self.shape).clone()
        for (start, stop, users), weight in zip(self.segments, self.weight, strict=True):
            part = nn.functional.linear(features[:, start:stop], weight)
            scores[:, users] += part.unflatten(1, (len(users), *self.shape[1:]))
        return scores

    def weight_of(self, variant: int) -> Tensor:
        """Weights of one variant's classifiers, shape (R, K, its features)."""
        parts = [
            weight.unflatten(0, (len(users), *self.shape[1:]))[users.index(variant)]
            for (_, _, users), weight in zip(self.segments, self.weight, strict=True)
            if variant in users
        ]
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def set_gradients(self, features: Tensor, target: Tensor, rates: Tensor) -> None:
        """Set the gradient of each classifier's mean cross-entropy times its learning rate.

        The gradient with respect to the scores is softmax minus target, so no graph is needed.

        Args:
            features: Input, shape (B, F).
            target: Classes, shape (B,).
            rates: Learning rates, shape (R,).
        """
        scores = self(features)
        # Several times faster than `softmax` along an axis as short as the classes.
        gradient = (scores - scores.amax(-1, keepdim=True)).exp()
        gradient /= gradient.sum(-1, keepdim=True)
        gradient[torch.arange(len(target)), ..., target] -= 1
        gradient *= (rates / len(target)).unsqueeze(1)
        for (start, stop, users), weight in zip(self.segments, self.weight, strict=True):
            weight.grad = gradient[:, users].flatten(1).T @ features[:, start:stop]
        self.bias.grad = gradient.sum(0)


def linear_sweep(
    train: FeatureTable, val: FeatureTable, test: FeatureTable, config: SweepConfig = SweepConfig()
) -> SweepResult:
    """Train every configuration at once on cached features.

    The classifiers share nothing and momentum is linear in the gradient, so one optimiser at rate 1 on
    gradients times learning rates does what one optimiser per classifier would.

    Args:
        train: Features with labels.
        val: Features that choose the configuration.
        test: Features that are reported.
        config: The sweep.

    Returns:
        Accuracies of every configuration, and the chosen one.

    Raises:
        ValueError: If the features hold fewer blocks than the sweep reads, or one class only.
    """
    available = train.cls.shape[1]
    if max(config.blocks) > available:
        raise ValueError(
            f'the sweep reads the last {max(config.blocks)} blocks, the features hold {available}'
        )
    classes = int(max(t.label.max() for t in (train, val, test))) + 1
    if len(train.label.unique()) < 2:
        raise ValueError('a probe needs at least two classes among the training labels, got one')
    generator = torch.Generator().manual_seed(config.seed)
    count = max(config.blocks)
    model = BatchedLinear(train.cls.shape[2], classes, config.blocks, len(config.learning_rates), generator)
    batch = min(config.batch_size, len(train.label))
    steps = config.epochs * config.iterations
    rates = torch.tensor(config.learning_rates) * batch / 256
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=config.momentum, foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    inputs = train.stacked(count)
    position = len(inputs)
    for _ in range(steps):
        if position + batch > len(inputs):
            order, position = torch.randperm(len(inputs), generator=generator), 0
        index = order[position : position + batch]
        position += batch
        model.set_gradients(inputs[index].float(), train.label[index], rates)
        optimizer.step()
        schedule.step()
    return _score(model, val, test, config, count)


@torch.no_grad()
def _score(
    model: BatchedLinear, val: FeatureTable, test: FeatureTable, config: SweepConfig, count: int
) -> SweepResult:
    hits = {}
    for name, table in (('val', val), ('test', test)):
        parts = zip(table.stacked(count).split(4096), table.label.split(4096), strict=True)
        right = [(model(x.float()).argmax(-1) == y[:, None, None]).flatten(1) for x, y in parts]
        hits[name] = torch.cat(right).T  # (V·R, N)
    accuracy = {name: found.float().mean(1).tolist() for name, found in hits.items()}
    settings = [
        (blocks, average, lr)
        for blocks in config.blocks
        for average in (False, True)
        for lr in config.learning_rates
    ]
    rows = [
        SweepRow(*setting, validation, score)
        for setting, validation, score in zip(settings, accuracy['val'], accuracy['test'], strict=True)
    ]
    chosen = max(range(len(rows)), key=lambda i: rows[i].validation)
    return SweepResult(rows, rows[chosen], hits['test'][chosen].numpy())
