"""Run the rows of a table: load the source, adapt, tune or probe, and record the results."""

import time
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from . import records
from .cost import pretraining_cost
from .jobs import Job, build_job, why_not
from .meter import describe_machine
from .rows import Row, Table
from .scales import Scale, Search
from .stages import Stage, Store, is_first_process
from .work import adapt, prepare_source, probe, tune

#: Learning rates are searched with this seed for all rows and seeds.
_SEARCH_SEED = 0
_Say = Callable[[str], object]


class Chosen(NamedTuple):
    """The best factor on a rate, and validation values in [0, 1] by factor; empty if none was tried."""

    factor: float
    scores: dict[str, float]


def run_rows(
    table: Table, rows: list[Row], scale: Scale, seeds: int, store: Store, results: Path, progress: _Say = str
) -> list[records.Record]:
    """Run the rows and seeds that are not in the results yet."""
    chosen = []
    for row in rows:
        reason = why_not(table, row, scale)
        if reason:
            progress(f'{row.name}: {reason}')
            continue
        for seed in range(seeds):

            def report(text: str, name: str = row.name, seed: int = seed) -> None:
                progress(f'{name}, seed {seed}: {text}')

            record = run_job(build_job(table, row, scale, seed), store, report)
            key = itemgetter('table', 'row', 'seed')
            same = [r for r in records.read(results) if key(r) == key(record)]
            known = [r for r in same if r['stages'] == record['stages']]
            record = known[-1] if known else record
            # Reports show the last line of a row and seed.
            if (not known or same[-1] is not record) and is_first_process():
                records.append(results, record)
            chosen.append(record)
    return chosen


def run_job(job: Job, store: Store, progress: _Say = str) -> records.Record:
    """Run one row with one seed and return its record; finished stages are read, not run."""
    progress('source')
    source = prepare_source(store, job)
    stages: dict[str, Stage] = {'source': source}
    rates: dict[str, Any] = {}
    if job.recipe is not None:
        chosen = search_pretraining(job, store, progress)
        progress(f'{job.recipe.name}, {job.recipe.steps} steps of {job.recipe.batch_size}')
        stages['adapted'] = adapt(store, job, source, chosen.factor)
        rates['pretrain'] = {'base_lr': chosen.factor * job.recipe.optim.base_lr, 'search': chosen.scores}
    model = stages.get('adapted', source)
    if job.row.tuning == 'probe':
        progress('probe')
        stages['probed'] = probe(store, job, model)
    elif job.row.tuning != 'none':
        chosen = search_tuning(job, store, model, progress)
        progress(f'{job.row.tuning} tuning')
        stages['tuned'] = tune(store, job, model, chosen.factor)
        rates['tune'] = {'factor': chosen.factor, 'search': chosen.scores}
    return _record(job, stages, rates)


def search_pretraining(job: Job, store: Store, progress: _Say = str) -> Chosen:
    """Search the pre-training learning rate with short runs and a probe of held-out training images."""
    search, trial = job.scale.search, replace(job, seed=_SEARCH_SEED)
    if search is None or job.recipe is None:
        return Chosen(1.0, {})
    source = prepare_source(store, trial)

    def score(factor: float) -> float:
        progress(f'search, learning rate x{factor:g}')
        model = adapt(store, trial, source, factor, search.pretrain_steps)
        return float(probe(store, trial, model, validate=True).record['value'])

    return _choose(search, score)


def search_tuning(job: Job, store: Store, model: Stage, progress: _Say = str) -> Chosen:
    """Search the tuning learning rate for every seed, on the first seed's backbone and held-out images."""
    search, trial = job.scale.search, replace(job, seed=_SEARCH_SEED)
    if search is None:
        return Chosen(1.0, {})
    if job.seed != _SEARCH_SEED:
        model = prepare_source(store, trial)
        if trial.recipe is not None:
            model = adapt(store, trial, model, search_pretraining(trial, store, progress).factor)

    def score(factor: float) -> float:
        progress(f'tuning search, learning rate x{factor:g}')
        return float(tune(store, trial, model, factor, search.tune_steps, validate=True).record['value'])

    return _choose(search, score)


def _choose(search: Search, score: Callable[[float], float]) -> Chosen:
    """Return the best factor; if the best is clearly an end, also try factors beyond it."""
    # Short trials favor high rates: a tie beyond the given factors may fail at full length.
    scores = {f: score(f) for f in search.factors}
    best = max(scores, key=scores.__getitem__)
    for _ in range(search.beyond):
        order = sorted(scores)
        if len(order) < 2 or best not in (order[0], order[-1]):
            break
        inner = order[1] if best == order[0] else order[-2]
        if scores[best] - scores[inner] <= search.edge:
            break
        further = float(f'{best * best / inner:.2g}')
        scores[further] = score(further)
        if scores[further] - scores[best] <= search.edge:
            break
        best = further
    return Chosen(best, {f'{f:g}': s for f, s in scores.items()})


def _record(job: Job, stages: dict[str, Stage], rates: dict[str, Any]) -> records.Record:
    found = {kind: stage.record for kind, stage in stages.items()}
    adapted, last = found.get('adapted', {}), found.get('probed') or found.get('tuned') or {}
    costly = [r for r in (adapted, last) if r]
    energy, used = None, [r['energy'] for r in costly]
    if used and None not in used:  # every stage was measured
        energy = {key: sum(e[key] for e in used) for key in ('kwh', 'kg')}
        energy |= {'method': ' and '.join(dict.fromkeys(e['method'] for e in used))}
        energy |= {'pretrain_kg': adapted['energy']['kg'] if adapted else 0.0}
    # The table of carbon shows pre-training alone, and nothing without an energy meter.
    value = 100 * last['value'] if last else energy and energy['pretrain_kg']
    return {
        **{'table': job.table.id, 'row': job.row.id, 'name': job.row.name, 'origin': 'run'},
        **{'scale': job.scale.name, 'seed': job.seed},
        'value': value,
        'scores': {k: 100 * v for k, v in last.get('scores', {}).items()},
        **{'published': job.row.published.value, 'mark': job.row.published.mark},
        **{'dataset': job.dataset, 'stands_in': job.data.stands_in},
        **{'model': job.source.model, 'source': job.source.weights or 'random'},
        'adaptation': None if job.recipe is None else job.recipe.name,
        'tuning': job.row.tuning,
        'parameters': found['source']['parameters'],
        **{k: adapted.get(k, 0) for k in ('trainable', 'steps', 'batch', 'images_seen')},
        **{k: adapted.get(k) for k in ('images_per_s', 'seconds_per_step', 'loss')},
        'curve': adapted.get('curve', []),
        'flops': 0.0 if job.recipe is None else pretraining_cost(job).work,
        'tuned_parameters': last.get('tuned_parameters', 0),
        'tune_steps': last.get('steps', 0),
        'labels': last.get('labels', last.get('images', {}).get('train')),
        'seconds': round(sum(r['seconds'] for r in costly), 2),
        'peak_memory': max(r['peak_memory'] for r in costly),
        'energy': energy,
        'precision': adapted.get('precision') or last.get('precision'),
        'learning_rates': rates,
        **{k: last.get(k, {}) for k in ('images', 'absent')},
        **{k: last.get(k) for k in ('strengths', 'feature_dim')},
        'details': last.get('details', []),
        'stages': {kind: stage.key for kind, stage in stages.items()},
        'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        # The machine of the first of them, which may be another one.
        **next((r['machine'] for r in costly if 'machine' in r), describe_machine()),
    }
