"""The paper's linear probe: learning rates x blocks x pooling, trained together in one pass."""

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


class BatchedLinear(nn.Module):
    """One linear classifier per feature variant and learning rate.

    The variants are slices of one vector `(average, class token of the last block, of the one before, …)`,
    so each is one matrix product for all learning rates and nothing is copied.
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
        self.rates, self.classes = rates, classes
        self.slices = [(dim * (not average), dim * (1 + n)) for n in blocks for average in (False, True)]
        self.weight = nn.ParameterList(
            nn.Parameter(0.01 * torch.randn(stop - start, rates * classes, generator=generator))
            for start, stop in self.slices
        )
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(rates * classes)) for _ in self.slices)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Scores of all classifiers by variant, (B, F) -> V times (B, R, K)."""
        return [
            torch.addmm(bias, features[:, start:stop], weight).unflatten(1, (self.rates, self.classes))
            for (start, stop), weight, bias in zip(self.slices, self.weight, self.bias, strict=True)
        ]

    @torch.no_grad()
    def set_gradients(self, features: Tensor, target: Tensor, rates: Tensor) -> None:
        """Set the gradient of each classifier's mean cross-entropy times its learning rate.

        The gradient with respect to the scores is softmax minus target, so no graph is needed.

        Args:
            features: Input, shape (B, F).
            target: Classes, shape (B,).
            rates: Learning rates, shape (R,).
        """
        rows = torch.arange(len(target))
        scale = (rates / len(target)).unsqueeze(1)
        for i, scores in enumerate(self(features)):
            # Several times faster than `softmax` along an axis as short as the classes.
            gradient = (scores - scores.amax(2, keepdim=True)).exp()
            gradient /= gradient.sum(2, keepdim=True)
            gradient[rows, :, target] -= 1
            gradient = (gradient * scale).flatten(1)  # (B,R,K) -> (B,R·K)
            start, stop = self.slices[i]
            self.weight[i].grad = features[:, start:stop].T @ gradient
            self.bias[i].grad = gradient.sum(0)


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
        right = [torch.cat([s.argmax(2) == y[:, None] for s in model(x.float())], dim=1) for x, y in parts]
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
