"""Scores of frozen features before and after an adaptation, and what they say."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from explora_geo.evaluation.intervals import bootstrap_interval
from explora_geo.models.turns import check_turns

Outcome = Literal['helps', 'no difference', 'harm']

#: Measurements by key, as reports name them.
METHODS = {'knn': 'k-NN', 'linear': 'Linear probe', 'few': 'Few labels'}
#: Loss of accuracy that counts as harm.
MARGIN = 0.01
#: How outcomes are told.
RULE = (
    'harm if any score falls by more than one point; helps if k-NN or linear probe gain outside their paired '
    '95 % interval and nothing is harmed; else no difference'
)
SOURCE, ADAPTED, BESIDE, BEST_BLOCK, TURNS = 'source', 'adapted', 'beside', 'best_block', 'turns'
WHITENED = 'whitened'
#: What costs nothing but passes, and must be beaten.
RIVALS = (BEST_BLOCK, f'{TURNS}_{SOURCE}', WHITENED)


@dataclass(frozen=True)
class PairProtocol:
    """How features are scored; the same draws for every model.

    Attributes:
        token: Mean patch token or class token of the last block.
        neighbors: k of k-NN, at most the mean number of tiles of a class.
        penalties: Inverse regularization strengths, of which validation chooses one.
        few: Labels per class of the measurement with few labels.
        draws: Draws of training and validation tiles.
        test_share: Share of each class that is tested on, where no test tiles are given.
        val_share: Share of the other tiles of each class that choose settings.
        turns: Orientations that rivals are averaged over: 4, 8, or 1 for no such rival.
        whitening: Powers of `whitening_matrix` of which validation chooses one for the whitened source;
            the tiles that are not tested on give its covariance. None for no such rival.
        resamples: Bootstrap samples of an interval.
    """

    token: Literal['avg', 'cls'] = 'avg'
    neighbors: int = 20
    penalties: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    few: int = 10
    draws: int = 5
    test_share: float = 0.5
    val_share: float = 0.2
    turns: int = 4
    whitening: tuple[float, ...] = (0.25, 0.5, 1.0)
    resamples: int = 1000

    def __post_init__(self) -> None:
        """Check the values."""
        check_turns(self.turns)
        for name in ('neighbors', 'few', 'draws', 'resamples'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
        for name in ('test_share', 'val_share'):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f'{name} must be between 0 and 1, got {getattr(self, name)}')
        if self.token not in ('avg', 'cls'):
            raise ValueError(f'token must be avg or cls, got {self.token}')


@dataclass(frozen=True)
class Measured:
    """One measurement of one model.

    Attributes:
        hits: Whether each test tile is right under each draw, shape (draws, M).
        validations: Validation accuracy of what was chosen, one per draw.
        settings: What was chosen, one per draw.
    """

    hits: NDArray[np.bool_]
    validations: tuple[float, ...]
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Scores of a source, of what was adapted from it, and of rivals that cost nothing.

    Attributes:
        models: Measurements by model and method. Models are `source`, `best_block` (of the source, chosen on
            validation), `turns_source`, `whitened`, each adapted one by its name and averaged over
            turns as `turns_<name>`, and `strength <s>`.
        adapted: Names of the adapted models.
        strengths: Strengths of the first adapted model that were scored, 0 and 1 included; or none.
        labels: Numbers of tiles and classes.
        protocol: How it was measured.
    """

    models: dict[str, dict[str, Measured]]
    adapted: tuple[str, ...]
    strengths: tuple[float, ...]
    labels: dict[str, int]
    protocol: PairProtocol

    def score(self, model: str, method: str) -> dict[str, float]:
        """Mean accuracy in [0, 1], the ends of its 95 % interval, and half of its width."""
        return self._interval(self.models[model][method].hits)

    def gain(self, model: str, method: str, over: str = SOURCE) -> dict[str, float]:
        """Paired gain over another model on the same draws and test tiles, with its 95 % interval."""
        after, before = (self.models[name][method].hits.astype(np.float32) for name in (model, over))
        return self._interval(after - before)

    def outcome(self, model: str | None = None) -> Outcome:
        """Whether an adapted model helps, by `RULE`; the first one if None."""
        gains = {method: self.gain(model or self.adapted[0], method) for method in METHODS}
        if any(gain['mean'] < -MARGIN for gain in gains.values()):
            return 'harm'
        return 'helps' if any(gains[method]['low'] > 0 for method in ('knn', 'linear')) else 'no difference'

    def rows(self, model: str | None = None) -> list[dict[str, Any]]:
        """One row per method for reports: source, adapted, rivals and paired gains; JSON-ready.

        Args:
            model: Name of the adapted model; the first one if None.

        Returns:
            Rows with `metric`, `title`, and the scores `source`, `adapted`, `gain`, `best_block`,
            `turns_source`, `turns_adapted`, `whitened` and, of a model with that name, `beside` with
            its own `gain`; `over` holds the gains over the rivals.
        """
        name = model or self.adapted[0]
        shown = {SOURCE: SOURCE, ADAPTED: name, BEST_BLOCK: BEST_BLOCK, WHITENED: WHITENED}
        shown |= {f'{TURNS}_{key}': f'{TURNS}_{m}' for key, m in ((SOURCE, SOURCE), (ADAPTED, name))}
        rows = []
        for method, title in METHODS.items():
            row: dict[str, Any] = {'metric': method, 'title': title}
            for key, known in shown.items():
                if known in self.models:
                    row[key] = self.score(known, method)
            row['gain'] = self.gain(name, method)
            if BESIDE in self.models and name != BESIDE:
                row[BESIDE] = {**self.score(BESIDE, method), 'gain': self.gain(BESIDE, method)}
            row['over'] = {key: self.gain(name, method, key) for key in RIVALS if key in self.models}
            settings = self.models[BEST_BLOCK][method].settings
            chosen = max(settings, key=settings.count)
            row[BEST_BLOCK]['block'] = int(chosen.split(',')[0].removeprefix('block '))
            for key in (f'{TURNS}_{SOURCE}', f'{TURNS}_{ADAPTED}'):
                if key in row:
                    row[key]['turns'] = self.protocol.turns
            if method == 'few':
                row['title'] = f'{self.protocol.few} labels a class'
            rows.append(row)
        return rows

    def curve(self) -> dict[str, Any]:
        """Accuracy by strength, and the strength that validation chooses; JSON-ready, empty without any.

        The chosen one has the highest mean validation accuracy of those that lose no more than one point in
        any measurement; 0 is the source.
        """
        if not self.strengths:
            return {}
        names = [self._at(s) for s in self.strengths]
        valid = np.array(
            [[np.mean(self.models[name][m].validations) for m in METHODS] for name in names]
        )  # (strengths, methods)
        safe = (valid >= valid[0] - MARGIN).all(1)
        return {
            'x': list(self.strengths),
            'series': [
                {'title': title, 'y': [self.score(name, method)['mean'] for name in names]}
                for method, title in METHODS.items()
            ],
            'chosen': self.strengths[int(np.where(safe, valid.mean(1), -1).argmax())],
        }

    def at(self, strength: float) -> 'Comparison':
        """The same with the first adapted model at one of the strengths that were scored; without the curve.

        Only the whole model and the source were averaged over orientations.
        """
        name, first = self._at(strength), self.adapted[0]
        models = {k: v for k, v in self.models.items() if k != f'{TURNS}_{first}'}
        turned = f'{TURNS}_{name}'
        models |= {first: self.models[name]}
        models |= {f'{TURNS}_{first}': self.models[turned]} if turned in self.models else {}
        return replace(self, models=models, strengths=())

    def to_dict(self, model: str | None = None) -> dict[str, Any]:
        """All of it as JSON-ready values; `labels` and `rows` are what reports show."""
        return {
            'labels': self.labels,
            'rows': self.rows(model),
            'outcome': self.outcome(model),
            'rule': RULE,
            'strength': self.curve(),
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

    def _at(self, strength: float) -> str:
        return {0.0: SOURCE, 1.0: self.adapted[0]}.get(strength, f'strength {strength:g}')

    def _interval(self, values: NDArray[Any]) -> dict[str, float]:
        low, high = bootstrap_interval(values, draws=self.protocol.resamples)
        return {'mean': float(values.mean()), 'low': low, 'high': high, 'half': (high - low) / 2}
