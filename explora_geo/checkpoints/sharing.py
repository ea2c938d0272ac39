"""Adapters and models for others: their cards, and the way to the hub and back."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from explora_geo.checkpoints.adapter import AdapterHeader, read_adapter
from explora_geo.checkpoints.files import atomic_path, read_state
from explora_geo.checkpoints.hub import ADAPTER, CARD, HUB, MODEL, fetch_file, hub_errors
from explora_geo.checkpoints.metadata import stated_bands, stated_normalization, stated_sizes
from explora_geo.models.normalization import Normalization, describe

_KNOWN = ('apache-2.0', 'mit', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'cc-by-nc-sa-4.0', 'cc0-1.0')
# How licences begin that nobody states.
_UNKNOWN = 'not stated'


class _Facts(NamedTuple):
    """What a file says of itself; `adaptation` is empty for a model that was not adapted."""

    is_adapter: bool
    backbone: str
    sizes: Mapping[str, int]
    bands: tuple[str, ...]
    normalization: Normalization | None
    base: str
    licence: str
    adaptation: str


def model_card(
    file: str | Path, report: str | Path | None = None, licence: str | None = None, usage: str = ''
) -> str:
    """Card of an adapter or a model: what it is, what it reads, whose terms hold, and what was measured.

    Args:
        file: Adapter or model file of ours.
        report: `report.json` of the run, whose scores the card quotes; the one beside the file if None.
        licence: Licence of the base weights, where the file does not state it.
        usage: Markdown on how to load it; how this package does if empty.

    Returns:
        Markdown with the hub's header.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file cannot be read or is no model of ours.
    """
    facts = _read_facts(Path(file))
    given = Path(report) if report is not None else Path(file).with_name('report.json')
    if report is not None and not given.is_file():
        raise FileNotFoundError(f'no report {given}')
    terms = licence or facts.licence or f'{_UNKNOWN} in the file'
    kind = 'adapter' if facts.is_adapter else 'model'
    title = f'{facts.backbone}, adapted by ExPLoRA {facts.adaptation}' if facts.adaptation else facts.backbone
    normalization = facts.normalization and describe(facts.normalization, facts.bands)
    rows = {
        'backbone': f'`{facts.backbone}`, ' + ', '.join(f'{k} {v}' for k, v in facts.sizes.items()),
        'base': f'`{facts.base}`' if facts.base else 'not stated',
        'bands, in this order': ', '.join(facts.bands) or 'not stated',
        'images are normalized by mean ± deviation': normalization or 'not stated',
        'licence of the base, which holds here too': terms,
    }
    parts = [
        _front_matter(facts, terms),
        f'# {title}',
        f'This {kind} was made with [explora_geo](https://pypi.org/project/explora-geo), which continues '
        'self-supervised pre-training of vision transformers on unlabeled satellite images.',
        '| | |\n|---|---|\n' + '\n'.join(f'| {k} | {v} |' for k, v in rows.items()),
        usage or _usage(facts),
    ]
    if given.is_file():
        parts.append(_measured(json.loads(given.read_text(encoding='utf-8')), given))
    return '\n\n'.join(filter(None, parts)) + '\n'


def push(
    file: str | Path,
    repo: str,
    report: str | Path | None = None,
    licence: str | None = None,
    private: bool = False,
) -> str:
    """Upload an adapter or a model with its card, or a folder of `export_peft`, in one commit.

    Args:
        file: Adapter or model file, or the folder, which has a card.
        repo: `owner/name`; it is made if there is none.
        report: `report.json` of the run, see `model_card`.
        licence: Licence of the base weights, where the file does not state it.
        private: Whether a repository that is made is private.

    Returns:
        Name of what was uploaded, `hf:owner/name@commit`.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the file is none of ours, no licence is known, or the hub does not take it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    file, api = Path(file), HfApi()
    files: dict[str, str | bytes]
    if file.is_dir():
        files = {part.name: str(part) for part in sorted(file.iterdir()) if part.is_file()}
        if CARD not in files:
            raise ValueError(
                f'{file} has no {CARD}: push a file, or a folder that export --format peft wrote'
            )
        card = (file / CARD).read_text(encoding='utf-8')
    else:
        card = model_card(file, report, licence)
        files = {ADAPTER if _read_facts(file).is_adapter else MODEL: str(file), CARD: card.encode()}
    if f'license_name: "{_UNKNOWN}' in card:
        raise ValueError(
            f'{file} states no licence of its base weights: read their terms, and give the licence that they '
            'allow'
        )
    with hub_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = api.create_commit(repo, additions, commit_message=f'Upload {file.name}')
    return f'{HUB}{repo}@{done.oid}'


def pull(name: str, out: str | Path) -> Path:
    """Copy an adapter or a model and its card from the hub into a folder.

    Args:
        name: `owner/name[@revision][/file]`, with or without `hf:` before it.
        out: The folder.

    Returns:
        The adapter or model file in it.

    Raises:
        ValueError: If it cannot be had; the message says why and what to do.
    """
    found = fetch_file(name, (ADAPTER, MODEL))
    target = Path(out) / found.path.name
    for source, copy in ((found.path, target), (found.card, Path(out) / CARD)):
        if source is not None:
            with atomic_path(copy) as temporary:
                shutil.copyfile(source, temporary)
    return target


def _read_facts(file: Path) -> _Facts:
    _, meta = read_state(file, values=False)
    source = str(file)
    if 'adapter' in meta:
        header: AdapterHeader = read_adapter(file)[0]
        return _Facts(
            is_adapter=True,
            backbone=header.backbone,
            sizes={'img_size': header.img_size, 'patch_size': header.patch_size},
            bands=header.bands,
            normalization=header.normalization,
            base=header.base,
            licence=header.licence,
            adaptation=header.explora_config.notation(),
        )
    bands = stated_bands(meta, source)
    if 'backbone' not in meta or bands is None:
        raise ValueError(
            f'{file} does not say what it is: give an adapter, or a model of adapter merge or export'
        )
    return _Facts(
        is_adapter=False,
        backbone=meta['backbone'],
        sizes=stated_sizes(meta, source),
        bands=bands,
        normalization=stated_normalization(meta, bands, source),
        base=meta.get('base', ''),
        licence=meta.get('licence', ''),
        adaptation=meta.get('adaptation', ''),
    )


def _front_matter(facts: _Facts, licence: str) -> str:
    """The YAML header that the hub reads."""
    known = licence.lower() in _KNOWN
    lines = [f'license: {licence.lower() if known else "other"}']
    lines += [] if known else [f'license_name: {json.dumps(licence)}']
    # timm's names are those of its repositories.
    base = facts.base.removeprefix(HUB).partition('@')[0]
    if facts.base.startswith((HUB, 'timm/')):
        lines += [
            f'base_model: {base}',
            f'base_model_relation: {"adapter" if facts.is_adapter else "finetune"}',
        ]
    lines += ['library_name: explora_geo', 'tags: [earth-observation, vision-transformer, explora]']
    return '\n'.join(['---', *lines, '---'])


def _usage(facts: _Facts) -> str:
    base, name = facts.base or 'FILE_OF_THE_BASE', ADAPTER if facts.is_adapter else MODEL
    given = f'{base!r}, {name!r}' if facts.is_adapter else f'{name!r}'
    return (
        '## Use\n\n```python\nfrom explora_geo import load_backbone\n\n'
        f'vit = load_backbone(None, {given})  # or hf:owner/name in place of the file\n'
        '# vit(images) gives features; vit.normalization says how images are normalized\n```'
    )


def _measured(report: Mapping[str, Any], file: Path) -> str:
    """Scores of the run's report as a table; empty without labels."""
    scores = report.get('scores')
    if not scores:
        return ''
    labels = scores['labels']
    lines = ['| accuracy, % | base | adapted | gain (95 % interval) |', '|---|---|---|---|']
    for row in scores['rows']:
        base, own = (f'{100 * row[key]["mean"]:.1f}' for key in ('source', 'adapted'))
        mean, low, high = (100 * row['gain'][key] for key in ('mean', 'low', 'high'))
        lines.append(f'| {row["title"]} | {base} | {own} | {mean:+.1f} ({low:+.1f} to {high:+.1f}) |')
    about = (
        f'{labels["classes"]} classes, {labels["train"]} tiles to train on, {labels["test"]} to test; frozen '
        f'features, gains paired by tile. Adapted by {report["adaptation"]["notation"]} in '
        f'{report["adaptation"]["steps"]} steps. From {file.name} of the run.'
    )
    verdict = report.get('verdict', {}).get('text', '')
    return '\n\n'.join(filter(None, ['## Measured', verdict, '\n'.join(lines), about]))
