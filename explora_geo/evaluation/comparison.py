"""Scores of frozen features before and after an adaptation and of free rivals, with paired intervals."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from explora_geo.adaptation import merge_lora
from explora_geo.evaluation.features import evaluating, tokens_of
from explora_geo.evaluation.probes import Budget, bootstrap_interval, knn_hits, logistic_hits
from explora_geo.models.readout import check_turns, whitening_matrix
from explora_geo.models.vit import ViT

Outcome = Literal['helps', 'no difference', 'harm']
#: Batches that can be iterated repeatedly, or a function that makes them.
Batches = Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]]

#: Titles of the methods in reports.
METHODS = {'knn': 'k-NN', 'linear': 'Linear probe', 'few': 'Few labels'}
#: Loss of accuracy above which an adaptation does harm.
MARGIN = 0.01
#: Rule for outcomes.
RULE = (
    'harm if any score drops by more than one point; helps if the paired 95 % interval of the k-NN or linear '
    'probe gain lies above zero and nothing is harmed; otherwise no difference'
)
SOURCE, ADAPTED, BESIDE = 'source', 'adapted', 'beside'
BEST_BLOCK, TURNS, WHITENED = 'best_block', 'turns', 'whitened'
#: k of k-NN, at most the mean number of tiles per class; labels per class of the few-label probe.
NEIGHBORS, FEW = 20, 10
#: Share of each class for testing, and share of the rest for validation.
TEST_SHARE, VAL_SHARE = 0.5, 0.2


def outcome_of(gains: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """Apply `RULE` to paired gains by method; a gain without an interval counts as chance."""
    if any(gain['mean'] < -MARGIN for gain in gains.values()):
        return 'harm'
    told = any((gain.get('low') or 0) > 0 for method, gain in gains.items() if method != 'few')
    return 'helps' if told else 'no difference'


@dataclass(frozen=True)
class PairProtocol:
    """Protocol for scoring mean patch tokens, with the same draws for every model.

    Attributes:
        penalties: Inverse regularization strengths to choose from on validation.
        draws: Draws of training and validation tiles.
        turns: Orientations that rivals are averaged over: 4, 8, or 1 for no such rival.
        whitening: Powers of `whitening_matrix` to choose from on validation for the whitened source, whose
            covariance is that of all tiles outside the test set; empty for no such rival.
        resamples: Bootstrap samples per interval.
    """

    penalties: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    draws: int = 5
    turns: int = 4
    whitening: tuple[float, ...] = (0.25, 0.5, 1.0)
    resamples: int = 1000

    def __post_init__(self) -> None:
        """Check the values."""
        check_turns(self.turns)
        if self.draws < 1 or self.resamples < 1:
            raise ValueError(f'draws and resamples must be at least 1, got {self.draws} and {self.resamples}')


class Measured(NamedTuple):
    """Results of one method for one model."""

    hits: NDArray[np.bool_]  # whether each test tile is classified correctly in each draw, shape (draws, M)
    validations: tuple[float, ...]  # validation accuracy of the chosen setting, one per draw
    settings: tuple[str, ...]  # chosen setting, one per draw


@dataclass(frozen=True)
class Comparison:
    """Scores of a source, of its adapted models, and of rivals that need no training.

    Attributes:
        models: Results by model and method. Models are `source`, `best_block` (of the source, chosen on
            validation), `turns_source`, `whitened`, each adapted model by its name and, averaged over
            turns, as `turns_<name>`, and `strength <s>`.
        adapted: Names of the adapted models.
        strengths: Strengths scored for the first adapted model, including 0 and 1; or empty.
        labels: Numbers of tiles and classes.
        protocol: Scoring protocol.
    """

    models: dict[str, dict[str, Measured]]
    adapted: tuple[str, ...]
    strengths: tuple[float, ...]
    labels: dict[str, int]
    protocol: PairProtocol

    def score(self, model: str, method: str) -> dict[str, Any]:
        """Return the mean accuracy in [0, 1] with its 95 % interval."""
        return self._interval(self.models[model][method].hits)

    def gain(self, model: str, method: str) -> dict[str, Any]:
        """Return the gain over the source, paired by draw and test tile, with its 95 % interval."""
        after, before = (self.models[name][method].hits.astype(np.float32) for name in (model, SOURCE))
        return self._interval(after - before)

    def _interval(self, values: NDArray[Any]) -> dict[str, Any]:
        low, high = bootstrap_interval(values, draws=self.protocol.resamples)
        return {'mean': float(values.mean()), 'low': low, 'high': high}

    def outcome(self, model: str | None = None) -> Outcome:
        """Return whether an adapted model (by default the first) helps, by `RULE`."""
        return outcome_of({method: self.gain(model or self.adapted[0], method) for method in METHODS})

    def rows(self, model: str | None = None) -> list[dict[str, Any]]:
        """Return one JSON-ready report row per method for an adapted model, by default the first.

        A row has `metric`, `title`, and the scores `source`, `adapted`, `gain`, `best_block`, `turns_source`,
        `turns_adapted`, `whitened` and, if there is a model of that name, `beside` with its own `gain`.
        Models at intermediate strengths have no score averaged over orientations.
        """
        name = model or self.adapted[0]
        shown = {key: key for key in (SOURCE, BEST_BLOCK, f'{TURNS}_{SOURCE}', WHITENED)}
        shown |= {ADAPTED: name, f'{TURNS}_{ADAPTED}': f'{TURNS}_{name}'}
        shown |= {BESIDE: BESIDE} if name != BESIDE else {}
        rows = []
        for method, title in METHODS.items():
            row = {key: self.score(known, method) for key, known in shown.items() if known in self.models}
            if BESIDE in row:
                row[BESIDE]['gain'] = self.gain(BESIDE, method)
            settings = self.models[BEST_BLOCK][method].settings
            chosen = max(settings, key=settings.count)
            row[BEST_BLOCK]['block'] = int(chosen.split(',')[0].removeprefix('block '))
            for key in (k for k in row if k.startswith(TURNS)):
                row[key]['turns'] = self.protocol.turns
            title = f'{FEW} labels a class' if method == 'few' else title
            rows.append({'metric': method, 'title': title, **row, 'gain': self.gain(name, method)})
        return rows

    def curve(self) -> dict[str, Any]:
        """Return accuracy by strength and the strength chosen on validation; JSON-ready, or empty.

        The chosen strength has the highest mean validation accuracy among those that lose at most one point
        by any method; 0 is the source.
        """
        if not self.strengths:
            return {}
        models = [self.models[self.at(s)] for s in self.strengths]
        valid = np.array([[np.mean(model[m].validations) for m in METHODS] for model in models])
        safe = (valid >= valid[0] - MARGIN).all(1)
        return {
            'x': list(self.strengths),
            'series': [
                {'title': title, 'y': [float(model[method].hits.mean()) for model in models]}
                for method, title in METHODS.items()
            ],
            'chosen': self.strengths[int(np.where(safe, valid.mean(1), -1).argmax())],
        }

    def at(self, strength: float) -> str:
        """Return the name of the first adapted model at a scored strength."""
        return {0.0: SOURCE, 1.0: self.adapted[0]}.get(strength, f'strength {strength:g}')

    def to_dict(self, model: str | None = None) -> dict[str, Any]:
        """Return everything as JSON-ready values, with `rows` and `outcome` of one adapted model."""
        return {
            'labels': self.labels,
            'rows': self.rows(model),
            'outcome': self.outcome(model),
            'rule': RULE,
            **({'strength': self.curve()} if self.strengths else {}),
            'models': {
                name: {
                    method: {
                        **self.score(name, method),
                        'gain': self.gain(name, method),
                        'draws': found.hits.mean(1).tolist(),
                        'validations': list(found.validations),
                        'settings': list(found.settings),
                    }
                    for method, found in methods.items()
                }
                for name, methods in self.models.items()
            },
            'protocol': asdict(self.protocol),
        }


def score_pair(
    before: ViT,
    after: ViT | Mapping[str, ViT],
    batches: Batches,
    *,
    strengths: Sequence[float] = (),
    protocol: PairProtocol = PairProtocol(),
) -> Comparison:
    """Score a source and its adapted models on labeled tiles, with the same draws for all.

    Half of the tiles of each class form the test set; every setting is chosen on validation tiles drawn from
    the rest. Each tile passes each model once, or once per orientation.

    Args:
        before: Source.
        after: Adapted model, or several by name.
        batches: Normalized `image`, shape (B, C, H, W), and `label`, shape (B,), always in the same order.
        strengths: Also score weights interpolated between the source (0) and the first adapted model (1).
        protocol: Scoring protocol.

    Raises:
        ValueError: If there are no labeled tiles or too few of a class, batches differ between passes, a
            strength is out of range, or the models' weights do not match.
    """
    adapted = after if isinstance(after, Mapping) else {ADAPTED: after}
    if not adapted or {SOURCE, BEST_BLOCK} & set(adapted):
        raise ValueError(f'adapted models need names other than source and best_block, got {list(adapted)}')
    between = sorted({float(s) for s in strengths} - {0.0, 1.0})
    if outside := [s for s in between if not 0 < s < 1]:
        raise ValueError(f'strength must be between 0 (source) and 1 (adapted), got {outside[0]:g}')
    main = next(iter(adapted))
    mixed = ((f'strength {s:g}', interpolate(before, adapted[main], s)) for s in between)
    splits: _Splits | None = None
    models: dict[str, dict[str, Measured]] = {}
    for name, vit in itertools.chain({SOURCE: before, **adapted}.items(), mixed):
        blocks = vit.depth if name == SOURCE else 1
        turns = protocol.turns if name == SOURCE or name in adapted else 1
        read, turned, label = _extract(vit, batches() if callable(batches) else batches, blocks, turns)
        splits = splits or _Splits(label, protocol)
        if not np.array_equal(splits.label, label):
            raise ValueError('batches must contain the same tiles in the same order on every pass')
        found = {name: {'last block': read[:, -1]}}
        if turns > 1:
            found[f'{TURNS}_{name}'] = {f'last block, {turns} turns': turned}
        if name == SOURCE:
            # Last block first, so that it wins ties on validation.
            found[BEST_BLOCK] = {f'block {i + 1}': read[:, i] for i in reversed(range(vit.depth))}
            if protocol.whitening:
                found[WHITENED] = splits.whitened(read[:, -1])
        models |= {known: splits.measure(sets) for known, sets in found.items()}
    assert splits is not None
    return Comparison(
        models, tuple(adapted), (0.0, *between, 1.0) if strengths else (), splits.counts, protocol
    )


def interpolate(before: ViT, after: ViT, strength: float) -> ViT:
    """Return a model with weights interpolated between source (0) and adapted model (1), LoRA merged.

    Raises:
        ValueError: If the strength is not in [0, 1], or the models' weights differ in name or shape.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f'strength must be between 0 (source) and 1 (adapted), got {strength:g}')
    start, vit = (merge_lora(copy.deepcopy(model)) for model in (before, after))
    state, end = start.state_dict(), vit.state_dict()
    shapes, others = ({k: v.shape for k, v in found.items()} for found in (state, end))
    if differing := [k for k in {**shapes, **others} if shapes.get(k) != others.get(k)]:
        raise ValueError(f'weights of source and adapted model differ in name or shape, first {differing[0]}')
    mixed = {
        key: torch.lerp(state[key].to(value), value, strength) if value.is_floating_point() else value
        for key, value in end.items()
    }
    vit.load_state_dict(mixed)
    return vit  # type: ignore[return-value]


class _Splits:
    """Indices of the test tiles, and of each draw's training, validation and few-label tiles."""

    def __init__(self, label: NDArray[Any], protocol: PairProtocol) -> None:
        self.label, self.protocol = label, protocol
        members = [np.flatnonzero(label == c) for c in np.unique(label)]
        fewest = min(map(len, members), default=0)
        if len(members) < 2 or fewest < 3:
            raise ValueError(
                f'scores need at least two classes with 3 or more labeled tiles each, got {len(members)} '
                f'classes and {fewest} tiles in the smallest'
            )
        counts = [min(max(round(TEST_SHARE * len(m)), 1), len(m) - 2) for m in members]
        spaced = [m[np.arange(n) * len(m) // n] for m, n in zip(members, counts, strict=True)]
        self.test = np.sort(np.concatenate(spaced))
        self.pool = np.setdiff1d(np.arange(len(label)), self.test)
        self.draws = [self._draw(seed) for seed in range(protocol.draws)]
        sizes = [*map(len, self.draws[0]), len(self.test), len(members)]
        self.counts = dict(zip(('train', 'validation', 'few', 'test', 'classes'), sizes, strict=True))

    def _draw(self, seed: int) -> tuple[NDArray[Any], ...]:
        held = Budget(share=VAL_SHARE).draw(torch.from_numpy(self.label[self.pool]), seed).numpy()
        train = np.delete(self.pool, held)
        few = Budget(per_class=FEW).draw(torch.from_numpy(self.label[train]), seed).numpy()
        return train, self.pool[held], train[few]

    def whitened(self, features: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Whiten features by the covariance of tiles outside the test set; one set per power."""
        centered = torch.from_numpy(features - features[self.pool].mean(0))
        covariance = centered[self.pool].T.cov(correction=0)
        return {
            f'whitened {power:g}': (centered @ whitening_matrix(covariance, power)).numpy()
            for power in self.protocol.whitening
        }

    def measure(self, sets: dict[str, NDArray[Any]]) -> dict[str, Measured]:
        """Score feature sets by every method; validation chooses among the sets."""
        choices = []
        for indices in self.draws:
            train, val, few, test = (
                ({name: values[i] for name, values in sets.items()}, self.label[i])
                for i in (*indices, self.test)
            )
            k = max(1, min(NEIGHBORS, len(indices[0]) // self.counts['classes']))
            linear = (logistic_hits(part, val, test, self.protocol.penalties) for part in (train, few))
            choices.append((knn_hits(train, val, test, k), *linear))
        columns = [list(zip(*column, strict=True)) for column in zip(*choices, strict=True)]
        measured = [Measured(np.stack(hits), *rest) for hits, *rest in columns]
        return dict(zip(METHODS, measured, strict=True))


def _extract(
    vit: ViT, batches: Iterable[Mapping[str, Any]], blocks: int, turns: int
) -> tuple[NDArray[Any], ...]:
    """Return features of the last blocks, (N, blocks, D), turn-averaged last one, (N, D), labels, (N,)."""
    parts = []
    with evaluating(vit):
        for batch in batches:
            # All blocks for the original orientation, only the last one for the others.
            seen = [tokens_of(vit, batch, range(-1 if n else -blocks, 0), n)[1] for n in range(turns)]
            turned = torch.stack([tokens[:, -1] for tokens in seen]).mean(0)
            parts.append((seen[0].cpu(), turned.cpu(), batch['label'].cpu()))
    if not parts:
        raise ValueError('no labeled tiles to score features on')
    return tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))
