"""A small search for the regime in which an adaptation helps, on a validation part only."""

import logging
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.checkpoints import atomic_path, load_backbone
from explora_geo.demo.measure import Protocol, Score, compare, measure
from explora_geo.demo.run import BACKBONE, SOURCE, Recipe, adapt, find_data, open_data, plain
from explora_geo.demo.tiles import Tiles, split_by_class
from explora_geo.trainers import OptimConfig

from .paper import records


def read_rows(path: Path) -> tuple[Protocol, dict[str, Recipe]]:
    """Read a search file.

    Args:
        path: YAML with `protocol`, `defaults` and `rows` (name to changed values).

    Returns:
        How rows are measured, and a recipe per name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no search file {path}')
    content = yaml.safe_load(path.read_text())
    recipes = {}
    for name, changes in content['rows'].items():
        values = {**content.get('defaults', {}), **(changes or {})}
        recipes[name] = recipe_of(values, f'{path}, row {name}')
    return Protocol(**content.get('protocol', {})), recipes


def recipe_of(values: dict[str, Any], where: str) -> Recipe:
    """Build a recipe from the flat values of a file.

    Args:
        values: Fields of `Recipe` and of `OptimConfig`, `alpha`, and the adaptation in the paper's notation.
        where: Place to name in messages.

    Returns:
        The recipe.

    Raises:
        ValueError: If a key is unknown or a value does not fit.
    """
    values = dict(values)
    alpha = values.pop('alpha', None)
    optim_keys = {f.name for f in fields(OptimConfig)}
    optim = {k: values.pop(k) for k in list(values) if k in optim_keys}
    unknown = set(values) - {f.name for f in fields(Recipe)}
    if unknown:
        raise ValueError(f'{where}: unknown keys {", ".join(sorted(unknown))}')
    values['adaptation'] = ExPLoRAConfig.parse(values['adaptation'], alpha=alpha)
    if 'crop_scale' in values:
        values['crop_scale'] = tuple(values['crop_scale'])
    recipe = Recipe(**values, optim=OptimConfig(**optim))
    try:
        _ = recipe.factory  # checks the objective's arguments before anything runs
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
    return recipe


def run_search(config: Path, out: Path, only: str = '') -> Path:
    """Run the rows that are not yet in the results.

    Training tiles are split: half of each class lend labels, a quarter choose the probe's setting and a
    quarter are the score; the test tiles stay unseen.

    Args:
        config: Search file.
        out: Folder; the results are `<name of config>.jsonl` and `.md` there.
        only: Run only rows whose name holds this text.

    Returns:
        The Markdown file.
    """
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    protocol, recipes = read_rows(config)
    console = Console()
    results = out / f'{config.stem}.jsonl'
    out.mkdir(parents=True, exist_ok=True)

    def known() -> dict[str, Any]:
        # Another process may add to the same file.
        return {row['name']: row for row in records.read(results)}

    if 'source' not in known():
        score, seconds = _measure_source(next(iter(recipes.values())), protocol), 0.0
        source = {'name': 'source', 'recipe': {}, 'score': score.to_dict(), 'seconds': seconds}
        records.append(results, source)
    for name, recipe in recipes.items():
        if only not in name or name in known():
            continue
        console.print(f'{name}: {recipe.name}, {recipe.steps} steps', markup=False)
        records.append(results, _run_row(name, recipe, protocol))
    report = out / f'{config.stem}.md'
    with atomic_path(report) as temporary:
        temporary.write_text(_markdown(known(), protocol, config))
    console.print(report.read_text(), markup=False)
    return report


def _parts(train: Tiles) -> tuple[Tiles, Tiles, Tiles]:
    first, rest = split_by_class(train.label, 0.5)
    held = train.take(rest)
    choose, score = split_by_class(held.label, 0.5)
    return train.take(first), held.take(choose), held.take(score)


def _measure_source(recipe: Recipe, protocol: Protocol) -> Score:
    _, train, _ = open_data(find_data(None), recipe)
    return measure(load_backbone(BACKBONE, SOURCE, learned_position=False), *_parts(train), protocol)


def _run_row(name: str, recipe: Recipe, protocol: Protocol) -> dict[str, Any]:
    datamodule, train, _ = open_data(find_data(None), recipe)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        task = adapt(datamodule, recipe, Path(folder), progress=False)
    seconds = time.perf_counter() - start
    score = measure(plain(task.model.final_backbone), *_parts(train), protocol)
    return {
        'name': name,
        'recipe': {
            **{k: v for k, v in vars(recipe).items() if k not in ('adaptation', 'optim')},
            'adaptation': recipe.adaptation.to_dict(),
            'optim': dict(vars(recipe.optim)),
        },
        'loss': float(task.trainer.callback_metrics['train_loss']),
        'score': score.to_dict(),
        'seconds': round(seconds, 1),
        'torch': torch.__version__,
    }


def _markdown(known: dict[str, Any], protocol: Protocol, config: Path) -> str:
    source = Score(**known['source']['score'])
    lines = [
        f'# Search {config.stem}',
        '',
        f'Made by `explora-bench search {config}`. Validation accuracy, %: mean over label seeds, and the '
        'paired gain over the source with its 95 % interval.',
        '',
    ]
    header = None
    for row in known.values():
        score = Score(**row['score'])
        table = compare(source, score, protocol)
        if header is None:
            header = ['recipe', *(r['measurement'] for r in table), 'linear probe, all labels', 'seconds']
            lines += ['| ' + ' | '.join(header) + ' |', '|' + '---|' * len(header)]
        cells = [
            f'{100 * r["after"]["mean"]:.1f} ({100 * r["gain"]["mean"]:+.1f} ± {100 * r["gain"]["half"]:.1f})'
            for r in table
        ]
        gain = score.linear_all - source.linear_all
        cells.append(f'{100 * score.linear_all:.1f} ({100 * gain:+.1f})')
        lines.append(f'| {row["name"]} | ' + ' | '.join(cells) + f' | {row["seconds"]:.0f} |')
    return '\n'.join([*lines, ''])
