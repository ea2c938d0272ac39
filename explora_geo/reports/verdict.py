"""Verdict of a report: whether the adaptation helps, and what to do next."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from explora_geo.evaluation.comparison import MARGIN, METHODS, outcome_of
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES

Outcome = Literal['helps', 'no difference', 'harm', 'unmeasured']

# Smallest relative change of a label-free score that counts as a hint.
_MOVED = 0.02
#: Feature variants that need no training, with their names in sentences.
RIVALS = {
    'best_block': "the source's best block",
    'turns_source': 'the source averaged over turns',
    'whitened': 'the whitened source',
}


class Verdict(NamedTuple):
    """First lines of a report."""

    outcome: Outcome  # by `comparison.RULE`; `unmeasured` without labels
    text: str
    advice: str


def judge(report: Mapping[str, Any]) -> Verdict:
    """Judge an adaptation from `report.json`, by its paired gains or by the label-free score."""
    how, scores = report.get('adaptation') or {}, report.get('scores') or {}
    rows = [r for r in scores.get('rows', []) if r.get('gain')]
    if how.get('short') and rows and all((r.get('beside') or {}).get('gain') for r in rows):
        return _beside(rows, how)
    if how.get('strength') == 0:
        text, why = 'The source is left unchanged.', 'strength 0 was requested'
        if how.get('strength_by') == 'label-free':
            text = 'Signs of harm at every strength, so the source is left unchanged.'
            why = f'it scores best by "{SCORES[DEFAULT_SCORE].title.lower()}"'
        if how.get('strength_by') == 'labels':
            text = 'Adapting did not help.'
            why = 'no strength tried was better on the validation tiles'
        file = 'The adapter file adds nothing; repeat the command with --strength 1 for the full adapter.'
        return Verdict('no difference', text, f'Keep the source: {why}. {file}')
    return _with_labels(rows) if rows else _without_labels(report)


def _beside(rows: list[Any], how: Mapping[str, Any]) -> Verdict:
    """Judge the adapter made beforehand, and mention that this run was short."""
    long = _with_labels([{**r, 'gain': r['beside']['gain'], 'adapted': r['beside']} for r in rows])
    steps = f'{how["steps"]} steps' if how.get('steps') else 'a few steps'
    advice = f'This run was short ({steps}) and only shows the workflow: {_points(rows)}. {long.advice}'
    return long._replace(text=long.text.replace('Adapting', 'The ready-made adapter', 1), advice=advice)


def _with_labels(rows: list[Any]) -> Verdict:
    outcome = outcome_of({r['metric']: r['gain'] for r in rows})
    up = [r for r in rows if (r['gain'].get('low') or 0) > 0]
    if outcome == 'harm':
        text = f'does harm: {_points([r for r in rows if r["gain"]["mean"] < -MARGIN])}'
        advice = (
            'Keep the source and discard this adapter. A longer run, a lower strength or another recipe may '
            'do better.'
        )
        advice += f' It gains with {_names(up)}; do not use it for anything else.' if up else ''
    elif outcome == 'no difference':
        text = f'makes no clear difference: {_points(rows)}'
        advice = f'Keep the source: it is as good and simpler.{_rival(rows)}'
    else:
        rest = [r for r in rows if r not in up]
        text = f'helps: {_points(up)}' + (f'; {_names(rest)} within noise' if rest else '')
        advice = f'Use the adapted features: the report ends with commands to do so.{_rival(rows)}'
    return Verdict(outcome, f'Adapting {text}.', advice)


def _without_labels(report: Mapping[str, Any]) -> Verdict:
    text = 'No labels, so it is unknown whether adapting helps.'
    advice = (
        'To find out, repeat the command with --labels FOLDER (labeled tiles in class folders). Until then, '
        'the source is the safe choice.'
    )
    scores = report.get('label_free') or {}
    before, after = ((scores.get(k) or {}).get(DEFAULT_SCORE) for k in ('source', 'adapted'))
    if before is not None and after is not None:
        hint = 'no hint either way'
        if abs(after - before) >= _MOVED * abs(before):
            what, hint = 'a gain' if after > before else 'harm', 'a hint, not proof'
            text = f'Signs of {what}, but no labels to confirm it.'
        title = SCORES[DEFAULT_SCORE].title.lower()
        advice = f'The label-free score "{title}" went from {before:.3g} to {after:.3g}: {hint}. {advice}'
    return Verdict('unmeasured', text, advice)


def _name(row: Mapping[str, Any]) -> str:
    title = str(row.get('title') or METHODS.get(row['metric'], row['metric']))
    return title if title == METHODS['knn'] else title[:1].lower() + title[1:]


def _names(rows: list[Any]) -> str:
    names = [_name(r) for r in rows]
    return ', '.join(names[:-1]) + ' and ' + names[-1] if len(names) > 1 else names[0]


def _points(rows: list[Any]) -> str:
    return ', '.join(f'{_name(r)} {signed(r["gain"])}' for r in rows) + ' points'


def signed(gain: Mapping[str, Any]) -> str:
    """Format the mean of a gain in points."""
    return f'{100 * gain["mean"]:+.1f}'.replace('-', '\N{MINUS SIGN}')


def _rival(rows: list[Any]) -> str:
    """Return a sentence on a free rival that scores higher, if one does."""
    for name, title in RIVALS.items():
        better = [
            r
            for r in rows
            if r.get(name) and r[name]['mean'] > max(r[v]['mean'] for v in ('source', 'adapted') if r.get(v))
        ]
        if better and len(better) >= len(rows) / 2:
            turns = f' (add --turns {better[0][name].get("turns", 4)})' if name == 'turns_source' else ''
            return f' Without any training, {title} scores higher with {_names(better)}{turns}.'
    return ''
