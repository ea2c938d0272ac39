"""Finished arms as rows of the ablation tables."""

from pathlib import Path
from typing import Any

from ..arms.config import Arm, Setting, read_arms
from . import records
from .jobs import fit_rank
from .rows import Row, Table
from .scales import Scale

_METHODS = {'logistic': 'logistic', 'knn': 'knn'}


def match(row: Row, arm: Arm, scale: Scale) -> bool:
    """Whether an arm does what a row says; arms probe what rows probe that name no blocks."""
    if row.only or row.last_blocks or row.tuning != 'probe' or (row.start == 'random') != arm.scratch:
        return False
    if arm.recipe is None:
        return not row.adaptation
    if not row.adaptation or {'MAE': 'M', 'DINOv2': 'D'}[arm.recipe.objective] != row.objective:
        return False
    wanted, got = fit_rank(row.config, scale).to_dict(), fit_rank(arm.recipe.adaptation, scale).to_dict()
    return all(wanted[k] == got[k] for k in ('unfrozen_blocks', 'rank', 'targets', 'train_norms'))


def import_arms(config: Path, results: Path, table: Table, scale: Scale, out: Path) -> int:
    """Append the finished arms that do what rows of a table say; arms are not changed.

    A frozen source belongs to the objective of the other arms. Their origin is the name of the arms' file, so
    that they stand beside runs of the same rows and are never averaged with them.

    Args:
        config: File of the arms.
        results: Their JSON lines.
        table: Table whose rows they become.
        scale: Scale that they are shown at.
        out: Results to append to.

    Returns:
        Number of records that were appended; those that are there already are left out.

    Raises:
        FileNotFoundError: If there are no results.
    """
    if not results.is_file():
        raise FileNotFoundError(f'no results of arms {results}: run explora-bench arms {config} first')
    setting, arms = read_arms(config)
    letters = {{'MAE': 'M', 'DINOv2': 'D'}[a.recipe.objective] for a in arms.values() if a.recipe}
    origin = f'arms {config.stem}'
    present = [r for r in records.read(out) if (r['table'], r['origin']) == (table.id, origin)]
    known = {(r['row'], r['seed']) for r in present}
    count = 0
    for line in records.read(results):
        arm = arms.get(line['name'])
        for row in table.rows.values() if arm is not None else ():
            wanted = row.objective in letters and match(row, arm, scale)  # type: ignore[arg-type]
            if wanted and (row.id, line['seed']) not in known:
                records.append(out, _record(table, row, scale, setting, arm, line, origin))  # type: ignore[arg-type]
                count += 1
    return count


def _record(
    table: Table, row: Row, scale: Scale, setting: Setting, arm: Arm, line: dict[str, Any], origin: str
) -> records.Record:
    recipe = arm.recipe
    steps = 0 if recipe is None else recipe.steps
    batch = 0 if recipe is None else recipe.batch_size
    scores = {k: 100 * v for k, v in line['scores'].items() if k.split(', ')[0] in _METHODS}
    value = scores.get('logistic, all', next(iter(scores.values())))
    step = line.get('seconds_per_step')
    return {
        'table': table.id,
        'row': row.id,
        'name': row.name,
        'origin': origin,
        'scale': scale.name,
        'seed': line['seed'],
        'value': value,
        'scores': scores,
        'published': row.published.value,
        'mark': row.published.mark,
        'dataset': table.dataset,
        'stands_in': f'{setting.train} at {setting.image_size} px',
        'model': setting.model,
        'source': 'random' if arm.scratch else setting.weights,
        'adaptation': None if recipe is None else recipe.name,
        'tuning': 'probe',
        'trainable': line.get('trainable', 0),
        'parameters': _size(setting),
        'tuned_parameters': 0,
        'steps': steps,
        'batch': batch,
        'images_seen': steps * batch,
        'images_per_s': batch / step if step else None,
        'seconds_per_step': step,
        'flops': 0.0,
        'seconds': (step or 0.0) * steps,
        'peak_memory': line.get('peak_memory', 0),
        'energy': None,
        'loss': line.get('loss'),
        'curve': line.get('curve', []),
        'images': {},
        'details': [],
        'feature_dim': None,
        'stages': {'arms': f'{origin}, {line["name"]}, {line["seed"]}'},
        'time': '',
        'hardware': {'device': line['device'], 'system': ''},
        'versions': {'torch': line['torch']},
    }


def _size(setting: Setting) -> int:
    import torch

    from explora_geo.models import create_vit

    with torch.device('meta'):
        vit = create_vit(setting.model, img_size=setting.image_size)
    return vit.num_parameters
