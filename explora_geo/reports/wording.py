"""What a report says in words and numbers."""

import re
from collections.abc import Mapping
from typing import Any

#: What objectives are called; ours must not pass for the paper's.
OBJECTIVES = {
    'dinov2': 'DINOv2 (D-ExPLoRA)',
    'mae': 'MAE (M-ExPLoRA)',
    'anchor': "anchor, explora_geo's own objective, not part of ExPLoRA",
}


def byline(report: Mapping[str, Any]) -> str | None:
    """What was adapted on what, and when, in one line."""
    notation = (report.get('adaptation') or {}).get('notation')
    weights = (report.get('model') or {}).get('weights')
    archive = (report.get('archive') or {}).get('source')
    if (report.get('adaptation') or {}).get('objective') == 'anchor':
        notation = f'Anchor {(notation or "").removeprefix("anchor-")} (ours, not ExPLoRA)'
    what = f'{notation or "Adapted"} from {weights}' if weights else notation
    parts = [f'{what or "Adapted"} on {archive}' if archive else what, report.get('created')]
    return ' \N{MIDDLE DOT} '.join(str(p) for p in parts if p) or None


def about(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was adapted on what, as terms and descriptions."""
    archive, model = report.get('archive') or {}, report.get('model') or {}
    how, labels = report.get('adaptation') or {}, (report.get('scores') or {}).get('labels') or {}
    found: list[tuple[str, str | None]] = [
        ('Archive', archive.get('source')),
        ('Images', _images(archive)),
        ('Bands', _bands(archive)),
        ('Values', _values(archive)),
        ('Coordinates', archive.get('crs')),
        ('Source', model.get('weights')),
        (
            'Backbone',
            _joined(model.get('backbone'), _count(model.get('parameters'), 'parameters'), model.get('card')),
        ),
        ('Adaptation', _joined(how.get('notation'), _share(how.get('trainable')))),
        ('Objective', OBJECTIVES.get(how.get('objective', ''), how.get('objective'))),
        ('Length', _length(how)),
        ('Image size', f'{how["image_size"]} px' if how.get('image_size') else None),
        ('Precision', how.get('precision')),
        ('Measured', _measured(how.get('measured') or [])),
        ('Strength', _strength(how)),
        ('Labels for scoring', _labels(labels)),
        ('Stopped early', how.get('stopped')),
    ]
    return [(term, str(text)) for term, text in found if text]


def _joined(*parts: str | None) -> str | None:
    return ', '.join(str(p) for p in parts if p) or None


def _count(value: Any, what: str) -> str | None:
    return None if value is None else f'{value:,} {what}'


def _share(value: float | None) -> str | None:
    return None if value is None else f'{100 * value:.1f} % of the weights train'


def _images(archive: Mapping[str, Any]) -> str | None:
    if not archive.get('count'):
        return None
    kind = {'scenes': 'scenes', 'pack': 'packed tiles'}.get(archive.get('kind', ''), 'tiles')
    size = archive.get('size')
    side = f' of {size[0]} x {size[1]} px'.replace(' x ', ' \N{MULTIPLICATION SIGN} ') if size else ''
    return f'{archive["count"]:,} {kind}{side}'


def _bands(archive: Mapping[str, Any]) -> str | None:
    bands, all_bands = archive.get('bands') or [], archive.get('file_bands') or []
    rest = f' (of {len(all_bands)} in the files)' if len(all_bands) > len(bands) else ''
    return ', '.join(bands) + rest if bands else None


def _values(archive: Mapping[str, Any]) -> str | None:
    values = None
    if archive.get('low') is not None and archive.get('high') is not None:
        values = f'{archive["low"]:.4g} to {archive["high"]:.4g}'
    empty = archive.get('nodata')
    return _joined(archive.get('dtype'), values, f'{100 * empty:.1f} % nodata' if empty else None)


def _length(how: Mapping[str, Any]) -> str | None:
    return _joined(
        _count(how.get('steps'), 'steps'),
        _count(how.get('batch_size'), 'a batch'),
        _count(how.get('views'), 'views'),
    )


def _measured(trials: list[Mapping[str, Any]]) -> str | None:
    """What batch and reading processes were chosen from, the chosen ones first."""
    parts = [
        f'{t["images_per_second"]:.3g} images/s in batches of {t["batch_size"]}, '
        f'{t["workers"] or "no"} process{"es"[: 2 * (t["workers"] != 1)]} reading, '
        f'{100 * t["waited"]:.0f} % of the time waiting for images'
        for t in trials
    ]
    return '; '.join(parts) or None


def _strength(how: Mapping[str, Any]) -> str | None:
    if how.get('strength') is None:
        return None
    by = {'labels': 'by validation tiles', 'request': 'as asked', 'label-free': 'without labels'}.get(
        how.get('strength_by', '')
    )
    return _joined(f'{how["strength"]:g}', by)


def _labels(labels: Mapping[str, Any]) -> str | None:
    parts = [_count(labels.get(k), k) for k in ('train', 'validation', 'test')]
    return _joined(labels.get('source'), _count(labels.get('classes'), 'classes'), *parts)


def facts(report: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The few numbers below the verdict."""
    found = []
    shown = 'beside' if (report.get('adaptation') or {}).get('short') else 'adapted'
    for row in rows:
        after = row.get(shown) or row.get('adapted')
        if row.get('source') and after:
            ends = f'{100 * row["source"]["mean"]:.1f} \N{RIGHTWARDS ARROW} {100 * after["mean"]:.1f} %'
            found.append({'term': row['title'], 'text': ends})
    found = found[:3]
    count = (report.get('archive') or {}).get('count')
    if count:
        found.append({'term': 'Images', 'text': f'{count:,}'})
    seconds = (report.get('cost') or {}).get('seconds')
    if seconds:
        found.append({'term': 'Time', 'text': duration(sum(seconds.values()))})
    return found


def cost(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run took, as terms and descriptions."""
    seconds = measured.get('seconds') or {}
    found = [(name[:1].upper() + name[1:], duration(s)) for name, s in seconds.items()]
    for key, term, show in (
        ('images_per_second', 'Speed', lambda v: f'{v:,.1f} images/s'),
        ('memory', 'Peak memory', _size),
        ('energy', 'Energy', lambda v: f'{v:,.1f} Wh'),
        ('device', 'Device', str),
        ('adapter_bytes', 'Adapter file', _size),
        ('model_bytes', 'Whole model', _size),
    ):
        if measured.get(key) is not None:
            found.append((term, show(measured[key])))
    return found


def percent(score: Mapping[str, Any] | None) -> str:
    """Mean of a score."""
    return '' if not score else f'{100 * score["mean"]:.1f}'


def signed(score: Mapping[str, Any] | float | None) -> str:
    """Mean of a gain, or a gain, in points."""
    mean = score.get('mean') if isinstance(score, Mapping) else score
    return '' if mean is None else f'{100 * mean:+.1f}'.replace('-', '\N{MINUS SIGN}')


def ends(score: Mapping[str, Any], sign: str = '') -> str:
    """Ends of the interval of a score."""
    low, high = (f'{100 * score[k]:{sign}.1f}'.replace('-', '\N{MINUS SIGN}') for k in ('low', 'high'))
    return f'{low} to {high}'


def tone(gain: Mapping[str, Any]) -> str:
    """Whether a gain lies outside its interval, and on which side."""
    if gain.get('low') is None or gain.get('high') is None:
        return 'same'
    return 'up' if gain['low'] > 0 else 'down' if gain['high'] < 0 else 'same'


def number(value: float | None) -> str:
    """A label-free score."""
    return '' if value is None else f'{value:.1f}' if abs(value) >= 10 else f'{value:.3f}'


def breakable(text: str) -> str:
    """Text that breaks where names have their joints: at capitals, digits and after punctuation."""
    return re.sub(r'(?<=[_/.\-])(?=\w)|(?<=[a-z])(?=[A-Z])', '\u200b', text)


def steady(text: str) -> str:
    """Text in which k-NN, and a gain with its name, stay on one line."""
    return re.sub(r' (?=[+\N{MINUS SIGN}]\d)', '\u00a0', text.replace('k-NN', 'k\u2011NN'))


def _size(value: float) -> str:
    for unit in ('bytes', 'kB', 'MB'):
        if value < 1000:
            return f'{value:.3g} {unit}'
        value /= 1000
    return f'{value:.3g} GB'


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest} s' if rest and minutes < 10 else f'{round(seconds / 60)} min'
    return f'{minutes // 60} h {minutes % 60} min'
