"""Score frozen features before and after an adaptation, beside rivals that cost nothing."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explora_geo.adaptation import merge_lora
from explora_geo.evaluation.budgets import Budget
from explora_geo.evaluation.comparison import (
    ADAPTED,
    BEST_BLOCK,
    METHODS,
    SOURCE,
    TURNS,
    WHITENED,
    Comparison,
    Measured,
    PairProtocol,
)
from explora_geo.evaluation.probes import Choice, knn_hits, logistic_hits
from explora_geo.models.turns import turn
from explora_geo.models.vit import ViT
from explora_geo.models.whitening import whitening_matrix

Batch = Mapping[str, Any]
#: Batches that can be read more than once, or a function that makes them anew.
Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]
Sets = dict[str, NDArray[Any]]


def score_pair(
    before: ViT,
    after: ViT | Mapping[str, ViT],
    batches: Batches,
    test: Batches | None = None,
    *,
    strengths: Sequence[float] = (),
    protocol: PairProtocol | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Score a source and what was adapted from it on labeled tiles, with the same draws for all.

    Every setting is chosen on validation tiles and reported on test tiles, which are the same for all draws.
    Each model sees each tile once, or once per orientation.

    Args:
        before: Source.
        after: Adapted model, or several by name.
        batches: Normalized `image`, shape (B, C, H, W), and `label`, shape (B,): training and validation
            tiles, and test tiles where there are no others. They must come in the same order every time.
        test: Batches of test tiles.
        strengths: Also score weights between the source (0) and the first adapted model (1).
        protocol: How to score; the defaults if None.
        progress: Told what is done next.

    Returns:
        The comparison.

    Raises:
        ValueError: If there are no labeled tiles or too few of a class, batches differ between readings, a
            strength is out of range, or weights do not fit one another.
    """
    protocol = protocol or PairProtocol()
    adapted = after if isinstance(after, Mapping) else {ADAPTED: after}
    taken = {SOURCE, BEST_BLOCK} & set(adapted)
    if not adapted or taken:
        raise ValueError(
            f'adapted models need names other than {SOURCE} and {BEST_BLOCK}, got {list(adapted)}'
        )
    outside = [s for s in strengths if not 0 <= s <= 1]
    if outside:
        raise ValueError(f'a strength is from 0 (source) to 1 (adapted), got {outside[0]:g}')
    between = sorted({float(s) for s in strengths} - {0.0, 1.0})
    first = next(iter(adapted.values()))

    def models() -> Iterator[tuple[str, ViT, range, int]]:
        yield SOURCE, before, range(before.depth), protocol.turns
        for name, vit in adapted.items():
            yield name, vit, range(vit.depth - 1, vit.depth), protocol.turns
        for strength in between:
            vit = interpolate(before, first, strength)
            yield f'strength {strength:g}', vit, range(vit.depth - 1, vit.depth), 1

    reread = [_again(b) for b in (batches, test) if b is not None]
    splits: _Splits | None = None
    found: dict[str, dict[str, Measured]] = {}
    for name, vit, blocks, turns in models():
        progress(f'features of {name}')
        parts = [_extract(vit, make(), blocks, turns, protocol.token) for make in reread]
        labels = [label for _, label in parts]
        if splits is None:
            splits = _Splits(labels, protocol)
        splits.check(labels)
        variants = _variants(name, [s for s, _ in parts], blocks, turns)
        if name == SOURCE and protocol.whitening:
            variants[WHITENED] = splits.whitened(variants[SOURCE]['last block'])
        for variant, sets in variants.items():
            progress(f'scores of {variant}')
            found[variant] = splits.measure(sets)
    assert splits is not None
    curve = (0.0, *between, 1.0) if strengths else ()
    return Comparison(found, tuple(adapted), curve, splits.counts, protocol)


def interpolate(before: ViT, after: ViT, strength: float) -> ViT:
    """A copy of a model whose weights lie between source and adapted ones.

    Args:
        before: Source, strength 0.
        after: Adapted model, strength 1; LoRA is merged in the copy.
        strength: Share of the difference, in [0, 1].

    Raises:
        ValueError: If the strength is out of range, or the models have other weights.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f'a strength is from 0 (source) to 1 (adapted), got {strength:g}')
    start, vit = (merge_lora(copy.deepcopy(model)) for model in (before, after))
    state, end = start.state_dict(), vit.state_dict()
    differing = [
        k for k in {**state, **end} if k not in state or k not in end or state[k].shape != end[k].shape
    ]
    if differing:
        raise ValueError(f'source and adapted model differ in what they hold, first {differing[0]}')
    mixed = {
        key: torch.lerp(state[key].to(value), value, strength) if value.is_floating_point() else value
        for key, value in end.items()
    }
    vit.load_state_dict(mixed)
    return vit  # type: ignore[return-value]


class _Splits:
    """Training, validation and test tiles of every draw, as indices into the tiles that were read."""

    def __init__(self, labels: Sequence[Tensor], protocol: PairProtocol) -> None:
        self.labels, self.protocol = [label.clone() for label in labels], protocol
        self.label = torch.cat(self.labels)
        given = torch.arange(len(self.label)) >= len(self.labels[0])
        members = [(self.labels[0] == c).nonzero().flatten() for c in self.labels[0].unique()]
        least = 2 if len(labels) == 2 else 3
        if len(members) < 2 or min(map(len, members)) < least:
            few = min(map(len, members), default=0)
            raise ValueError(
                f'scores need at least two classes of {least} labeled tiles or more, got {len(members)} '
                f'classes and {few} tiles of the smallest'
            )
        unknown = set(self.label[given].tolist()) - set(self.labels[0].tolist())
        if unknown:
            raise ValueError(f'test tiles have the classes {sorted(unknown)}, which no training tile has')
        if len(labels) == 1:
            for m in members:
                count = min(max(round(protocol.test_share * len(m)), 1), len(m) - 2)
                given[m[(torch.arange(count) * len(m)) // count]] = True
        self.test = given.nonzero().flatten()
        pool = (~given).nonzero().flatten()
        self.draws = [self._draw(pool, seed) for seed in range(protocol.draws)]
        train, val, few_labels = self.draws[0]
        self.counts = {
            'train': len(train),
            'validation': len(val),
            'test': len(self.test),
            'few': len(few_labels),
            'classes': len(members),
        }

    def _draw(self, pool: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Training, validation and few training tiles."""
        label = self.label[pool]
        held = Budget(share=self.protocol.val_share).draw(label, seed)
        kept = torch.ones(len(pool), dtype=torch.bool)
        kept[held] = False
        train = pool[kept]
        few = train[Budget(per_class=self.protocol.few).draw(self.label[train], seed)]
        return train, pool[held], few

    def check(self, labels: Sequence[Tensor]) -> None:
        """Refuse tiles that come in another order than those of the first model."""
        if not all(torch.equal(a, b) for a, b in zip(self.labels, labels, strict=True)):
            raise ValueError('batches must hold the same tiles in the same order every time they are read')

    def whitened(self, features: NDArray[Any]) -> Sets:
        """Features whitened by the tiles that are not tested on, one set for each power."""
        tested = np.zeros(len(features), bool)
        tested[self.test.numpy()] = True
        centered = torch.from_numpy(features - features[~tested].mean(0))
        covariance = centered[~tested].T.cov(correction=0)
        return {
            f'whitened {power:g}': (centered @ whitening_matrix(covariance, power)).numpy()
            for power in self.protocol.whitening
        }

    def measure(self, sets: Sets) -> dict[str, Measured]:
        """Score feature sets, one of which validation chooses."""
        found: dict[str, list[Choice]] = {method: [] for method in METHODS}
        for train, val, few in self.draws:
            parts = {name: self._part(sets, index) for name, index in (('val', val), ('test', self.test))}
            rest = (*parts['val'], *parts['test'])
            full = self._part(sets, train)
            k = max(1, min(self.protocol.neighbors, len(train) // self.counts['classes']))
            found['knn'].append(knn_hits(*full, *rest, k=k))
            found['linear'].append(logistic_hits(*full, *rest, self.protocol.penalties))
            found['few'].append(logistic_hits(*self._part(sets, few), *rest, self.protocol.penalties))
        return {
            method: Measured(
                np.stack([c.hits for c in choices]),
                tuple(c.validation for c in choices),
                tuple(c.setting for c in choices),
            )
            for method, choices in found.items()
        }

    def _part(self, sets: Sets, index: Tensor) -> tuple[Sets, NDArray[Any]]:
        rows = index.numpy()
        return {name: values[rows] for name, values in sets.items()}, self.label[index].numpy()


def _again(batches: Batches) -> Callable[[], Iterable[Batch]]:
    """A function that gives the batches anew."""
    if callable(batches):
        return batches
    kept = list(batches) if isinstance(batches, Iterator) else batches
    return lambda: kept


@torch.no_grad()
def _extract(
    vit: ViT, batches: Iterable[Batch], blocks: range, turns: int, token: str
) -> tuple[dict[int, Tensor], Tensor]:
    """Features by number of turns, shape (N, blocks, D) for 1 and (N, 1, D) for more; and labels, (N,)."""
    training, device = vit.training, vit.cls_token.device
    vit.eval()
    rows: dict[int, list[Tensor]] = {number: [] for number in {1, turns}}
    labels: list[Tensor] = []
    for batch in batches:
        image = batch['image'].to(device)
        times = batch.get('timestamps')
        times = None if times is None else times.to(device)
        total: Tensor | None = None
        for number in range(turns):
            # Every block of the tile as it is, the last one of its other orientations.
            wanted = list(blocks) if number == 0 else [blocks[-1]]
            features = vit.intermediate(turn(image, number), wanted, timestamps=times)
            vectors = torch.stack(
                [f.cls if token == 'cls' else f.patches.flatten(1, 2).mean(1) for f in features], 1
            ).float()
            if number == 0:
                rows[1].append(vectors.cpu())
            total = vectors[:, -1:] if total is None else total + vectors
        if turns > 1 and total is not None:
            rows[turns].append((total / turns).cpu())
        labels.append(batch['label'].cpu())
    vit.train(training)
    if not labels:
        raise ValueError('there are no labeled tiles to score features on')
    return {number: torch.cat(parts) for number, parts in rows.items()}, torch.cat(labels)


def _variants(name: str, parts: Sequence[dict[int, Tensor]], blocks: range, turns: int) -> dict[str, Sets]:
    """Feature sets to choose from, by the name of what they stand for."""
    joined = {number: torch.cat([part[number] for part in parts]).numpy() for number in parts[0]}
    variants: dict[str, Sets] = {name: {'last block': joined[1][:, -1]}}
    if len(blocks) > 1 or name == SOURCE:
        # From the last one on, which wins where validation cannot tell.
        last_first = reversed(range(len(blocks)))
        variants[BEST_BLOCK] = {f'block {blocks[i] + 1}': joined[1][:, i] for i in last_first}
    if turns > 1:
        variants[f'{TURNS}_{name}'] = {f'last block, {turns} turns': joined[turns][:, 0]}
    return variants
