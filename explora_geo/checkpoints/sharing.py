"""Share adapters and models: write their cards, push them to the hub, and pull them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from explora_geo.checkpoints.adapter import AdapterHeader, read_adapter
from explora_geo.checkpoints.facts import Facts
from explora_geo.checkpoints.files import atomic_path, read_state
from explora_geo.checkpoints.remote import ADAPTER, CARD, HUB, MODEL, fetch_file, hub_errors
from explora_geo.models.normalization import describe

_KNOWN = ('apache-2.0', 'mit', 'cc-by-4.0', 'cc-by-sa-4.0', 'cc-by-nc-4.0', 'cc-by-nc-sa-4.0', 'cc0-1.0')
# Start of the text for a license that is not stated.
_UNKNOWN = 'not stated'


def model_card(
    file: str | Path, report: str | Path | None = None, license: str | None = None, usage: str = ''
) -> str:
    """Return the card of an adapter or a model: what it is, what it reads, its license, and its scores.

    Args:
        file: Adapter or model file of ours.
        report: `report.json` of the run, whose scores the card quotes; if None, the one beside the file.
        license: License of the base weights, if the file does not state it.
        usage: Markdown on how to load it; if empty, how to load it with this package.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file cannot be read or is not a model of ours.
    """
    facts, scores = _read_facts(Path(file)), Path(report or Path(file).with_name('report.json'))
    if report is not None and not scores.is_file():
        raise FileNotFoundError(f'report not found: {report}')
    kind, adaptation = 'model', facts.adaptation
    if isinstance(facts, AdapterHeader):
        kind, adaptation = 'adapter', facts.explora_config.notation()
    license = license or facts.license or f'{_UNKNOWN} in the file'
    rows = {
        'backbone': f'`{facts.backbone}`, img_size {facts.img_size}, patch_size {facts.patch_size}',
        'base': facts.base and f'`{facts.base}`',
        'bands, in this order': ', '.join(facts.bands),
        'normalization, mean ± standard deviation': facts.normalization
        and describe(facts.normalization, facts.bands),
        'license of the base, which also applies here': license,
    }
    parts = [
        _front_matter(kind, facts.base, license),
        f'# {facts.backbone}' + (f', adapted by ExPLoRA {adaptation}' if adaptation else ''),
        f'This {kind} was made with explora_geo, which continues the self-supervised pre-training of vision '
        'transformers on unlabeled satellite images.',
        '| | |\n|---|---|\n' + '\n'.join(f'| {k} | {v or _UNKNOWN} |' for k, v in rows.items()),
        usage or _usage(kind, facts.base),
        _measured(json.loads(scores.read_text(encoding='utf-8'))) if scores.is_file() else '',
    ]
    return '\n\n'.join(filter(None, parts)) + '\n'


def push(
    file: str | Path,
    repo: str,
    report: str | Path | None = None,
    license: str | None = None,
    private: bool = False,
) -> str:
    """Upload an adapter or a model with its card, or a folder of `export_peft`, in one commit.

    The repository `owner/name` is created if missing; for report and license, see `model_card`.

    Returns:
        Name of the upload, `hf:owner/name@commit`.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the file is not ours, no license is known, or the hub rejects it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    file, api = Path(file), HfApi()
    if file.is_dir():
        files: dict[str, str | bytes] = {part.name: str(part) for part in file.iterdir() if part.is_file()}
        if CARD not in files:
            raise ValueError(f'{file} has no {CARD}: push a file or a folder written by export --format peft')
        card = (file / CARD).read_text(encoding='utf-8')
    else:
        card = model_card(file, report, license)
        name = ADAPTER if isinstance(_read_facts(file), AdapterHeader) else MODEL
        files = {name: str(file), CARD: card.encode()}
    if f'license_name: "{_UNKNOWN}' in card:
        raise ValueError(
            f'{file} does not specify the license of its base weights: read their terms and pass the license '
            'they allow'
        )
    with hub_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        additions = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = api.create_commit(repo, additions, commit_message=f'Upload {file.name}')
    return f'{HUB}{repo}@{done.oid}'


def pull(name: str, out: str | Path) -> Path:
    """Copy an adapter or a model, and its card, from the hub into a folder, and return its path there.

    `name` is `owner/name[@revision][/file]`, `hf:` optional; raises ValueError if it cannot be fetched.
    """
    found = fetch_file(name, (ADAPTER, MODEL))
    target = Path(out) / found.path.name
    for source, copy in ((found.path, target), (found.card, Path(out) / CARD)):
        if source is not None:
            with atomic_path(copy) as temporary:
                shutil.copyfile(source, temporary)
    return target


def _read_facts(file: Path) -> Facts:
    """Read the facts that an adapter or model file states."""
    _, meta = read_state(file, values=False)
    facts = read_adapter(file)[0] if 'adapter' in meta else Facts.of_entries(meta, str(file))
    if not facts.backbone or not facts.bands:
        raise ValueError(
            f'{file} does not specify backbone or bands: pass an adapter or a model from merge or export'
        )
    return facts


def _front_matter(kind: str, base: str, license: str) -> str:
    """Return the YAML header for the hub."""
    known = license.lower() in _KNOWN
    lines = [
        f'license: {license.lower()}' if known else f'license: other\nlicense_name: {json.dumps(license)}'
    ]
    if base.startswith((HUB, 'timm/')):  # timm's names equal those of its repositories
        lines.append(f'base_model: {"/".join(base.removeprefix(HUB).partition("@")[0].split("/")[:2])}')
        lines.append(f'base_model_relation: {"adapter" if kind == "adapter" else "finetune"}')
    tags = 'tags: [earth-observation, vision-transformer, explora]'
    return '\n'.join(['---', *lines, 'library_name: explora_geo', tags, '---'])


def _usage(kind: str, base: str) -> str:
    given = f'{base or "FILE_OF_THE_BASE"!r}, {ADAPTER!r}' if kind == 'adapter' else f'{MODEL!r}'
    return (
        '## Use\n\n```python\nfrom explora_geo import load_backbone\n\n'
        f'vit = load_backbone(None, {given})  # or hf:owner/name in place of the file\n'
        '# vit(images) returns features; vit.normalization is the normalization of the images\n```'
    )


def _measured(report: Mapping[str, Any]) -> str:
    """Return the scores in the run's report as a table; empty without labels."""
    scores = report.get('scores')
    if not scores:
        return ''
    lines = ['| accuracy, % | base | adapted | gain (95 % interval) |', '|---|---|---|---|']
    for row in scores['rows']:
        base, own = (f'{100 * row[key]["mean"]:.1f}' for key in ('source', 'adapted'))
        mean, low, high = (100 * row['gain'][key] for key in ('mean', 'low', 'high'))
        lines.append(f'| {row["title"]} | {base} | {own} | {mean:+.1f} ({low:+.1f} to {high:+.1f}) |')
    labels, run = scores['labels'], report['adaptation']
    about = (
        f'Frozen features, {labels["classes"]} classes, {labels["train"]} training and {labels["test"]} test '
        f'tiles, gains paired by tile; {run["notation"]} for {run["steps"]} steps.'
    )
    verdict = report.get('verdict', {}).get('text', '')
    return '\n\n'.join(filter(None, ['## Results', verdict, '\n'.join(lines), about]))
