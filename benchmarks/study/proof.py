"""Tables and figures of the paper's rows: python -m benchmarks.study.proof RUNS.jsonl FOLDER."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from explora_geo.checkpoints import atomic_path

from ..tables.records import markdown_table
from ..tables.records import read as read_lines
from ..tables.summary import spread
from . import figures
from .figures import ARMS, BUDGETS
from .jobs import FOUR
from .report import METHODS, TITLES, Row, gains_of, pooled, read, where

D_ROWS = {f'D-{key}': title for key, title in ARMS.items()} | {'anchor-small': 'the anchor (not the paper)'}
SHIPPED = {'anchor': 'the anchor [L]-r32, the default'}
#: ExPLoRA and all weights by the same objective, of the ViT-Ti/16 and of the six blocks, by its width.
WIDTHS = {
    'D': {192: ('D-explora', 'D-full'), 384: ('D-alone', 'D-full')},
    'the anchor': {192: ('anchor-small', 'anchor-small-full'), 384: ('anchor', 'anchor-full')},
}
M_ROWS = {'M-explora-64': ARMS['explora'], 'M-full-64': ARMS['full'], 'M-scratch': ARMS['scratch']}
FORGETTING = {
    'anchor': 'the anchor',
    'anchor-w0': 'without whitening',
    'anchor-w1': 'wholly whitened',
    'anchor-full': 'the anchor, all weights',
    'D-alone': 'D-ExPLoRA',
    'D-kept': 'D-ExPLoRA, Gram anchoring and preservation',
    'D-full': 'D, all weights',
}
BEYOND = {f'{letter}-{key}': f'{letter}, {title}' for letter in 'DM' for key, title in ARMS.items()}
CAPACITY = {
    **{f'D-lora-r{n}': f'LoRA-r{n} only' for n in (4, 8)},
    'D-lora': ARMS['lora'],
    **{f'D-explora-r{n}': f'ExPLoRA [L]-r{n}' for n in (4, 8)},
    'D-explora': ARMS['explora'],
    'D-explora-r64': 'ExPLoRA [L]-r64',
    'D-explora-all-r8': 'ExPLoRA [L]-r8, all matrices',
    'D-explora-embed': 'ExPLoRA [L]-r32, patch embedding',
    'D-explora-last6': 'ExPLoRA [L]-r32, last 6 blocks',
    'D-unfreeze': ARMS['unfreeze'],
    'D-unfreeze-two': 'unfreezing [L-1,L] only',
    'D-full': ARMS['full'],
}
RATIOS = {
    'D-explora-x1': 'the same',
    'D-explora': 'three times',
    'D-explora-x10': "ten times, at a third of the block's rate",
}
SIMPLER = {
    'Diet': 'DIET, 1,000 images',
    'align': 'patch kernel alignment',
    'align-still': 'patch kernel alignment, with the source as its teacher',
    'LeJEPA': 'LeJEPA',
    'anchor-small': 'the anchor',
    'D-explora': 'D-ExPLoRA',
}
GROUPS = {
    'G-explora1': 'ExPLoRA [L]-r32',
    'G-explora2': 'ExPLoRA [1,L]-r32',
    'G-unfreeze4': 'unfreezing [1,2,L-1,L] only',
    'G-full': 'full training',
    'G-scratch': 'from scratch',
}
#: Models whose blocks are analyzed, and whose patches a probe attends to.
ANALYZED = {
    'source': 'source as it is',
    'D-explora': 'D-ExPLoRA',
    'M-explora': 'M-ExPLoRA, 300 steps',
    'D-full': 'D, all weights',
    'M-full': 'M, all weights, 300 steps',
}
#: Models whose features are read in several ways.
READ = {
    'source': 'source',
    'D-explora': 'D-ExPLoRA',
    'D-lora': ARMS['lora'],
    'D-unfreeze': ARMS['unfreeze'],
    'D-full': 'D, all weights',
}
#: What may be done to the features of a model that is not trained further.
FREE = {
    'turns4': 'mean of 4 turns',
    'turns8': 'mean of 4 turns and their mirror images',
    'white0.5': 'whitened by half',
    'white1': 'whitened',
    'white1x4': 'whitened, mean of 4 turns',
    FOUR: 'last four blocks side by side',
}
#: What stands above the tables.
HEAD = """# The paper's rows from a supervised ViT-Ti/16

`python -m benchmarks.study DATA CACHE runs.jsonl GROUP...` made `runs.jsonl`, each job on one core of an AMD
EPYC with AVX-512-bf16, beside other work; `python -m benchmarks.study.proof runs.jsonl .` makes this page.
The source is the ViT-Ti/16 of natural images with labels (../../conf/scales/small_vit_tiny16.yaml), at 96 px.
Adaptations see 200 batches of 32 unlabeled training images at the rates that were searched for table 3. Test
accuracy in %, gains over the source in points with 95 % intervals over test images and, where there are
several, seeds (Student's t): a row of one seed says nothing of how seeds differ. Differences between rows are
paired by seed, and their intervals cover seeds alone. Probes read the mean patch of the last block.
"""


def once(rows: Iterable[Row]) -> list[Row]:
    """Return one row of each model with all that jobs of several groups told of it."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if 'gain' in row and FOUR not in row['gain']:
            found.setdefault(row['key'].removesuffix('.labels'), {}).update(row)
    return list(found.values())


def gained(pairs: Iterable[Sequence[float]]) -> str:
    """Gains of several seeds in points; see `pooled`."""
    return pooled(pairs).text('+')


def headline(rows: list[Row], domain: str, names: dict[str, str] | None = None) -> list[str]:
    """What each row gains by linear probe and LoRA-r8 tuning with few and with all labels."""
    names, lines = names or D_ROWS, []
    found = [r for r in where(rows, domain=domain) if r.get('labels') and r['name'] in names]
    cells = [(str(n), how) for how in ('linear', 'tuned') for n in BUDGETS[domain]]
    if found:
        of = {r['seed']: r['labels'] for r in found}
        first = [np.mean([labels[n][how][0] for labels in of.values()]) for n, how in cells]
        lines.append(['source as it is', str(len(of)), *(f'{100 * x:.1f}' for x in first)])
    for name, title in names.items():
        mine = where(found, name=name)
        if mine:
            gains = [gained(r['labels'][n][how][2:] for r in mine) for n, how in cells]
            lines.append([title, str(len(mine)), *gains])
    titles = {'linear': 'linear probe', 'tuned': 'LoRA-r8'}
    header = [f'{titles[how]}, {BUDGETS[domain][int(n)]}' for n, how in cells]
    return markdown_table([TITLES[domain], 'seeds', *header], lines)


def gains(rows: list[Row], names: dict[str, str], key: Callable[[Row], str] = lambda r: '') -> list[str]:
    """Gains of named recipes by every method, one line for each value of a key."""
    lines = []
    for name, title in names.items():
        mine = where(rows, name=name)
        for part in dict.fromkeys(map(key, mine)):
            same = [r for r in mine if key(r) == part]
            trained = f'{same[0].get("trained", 0) / 1e3:,.0f} k'
            lines.append([f'{title}{part}', str(len(same)), trained, *gains_of(same)])
    return markdown_table(['row', 'seeds', 'trains', *METHODS], lines)


def _told(row: Row) -> list[float]:
    """Points gained by every method, and with LoRA-r8 tuning by budget where that was run."""
    tuned = (budget['tuned'][2] for budget in row.get('labels', {}).values())
    return [100 * x for x in (*(gain for gain, _ in row['gain']['one']), *tuned)]


def differences(groups: Mapping[str, list[Row]], name: str, others: Mapping[str, str]) -> list[str]:
    """A named row less others, in each group of rows, paired by seed."""
    lines = []
    for group, rows in groups.items():
        first = {r['seed']: _told(r) for r in where(rows, name=name)}
        for other, title in others.items():
            pairs = [(first[r['seed']], _told(r)) for r in where(rows, name=other) if r['seed'] in first]
            if other != name and len(pairs) > 1:
                apart = [[a - b for a, b in zip(*pair, strict=False)] for pair in pairs]
                columns = zip(*apart, strict=False)  # tuned ones only where every seed has them
                cells = [spread([[x] for x in column], single=False).text('+') for column in columns]
                lines.append([f'{group}: less {title}', str(len(pairs)), *cells])
    header = ['row', 'seeds', *METHODS, 'LoRA-r8, 1 % or 5 a class', '10 % or 25 a class', 'all']
    width = max(map(len, lines), default=0)
    return markdown_table(header[:width], [line + [''] * (width - len(line)) for line in lines])


def widths(of: Mapping[int, list[Row]]) -> list[str]:
    """Gains of ExPLoRA and of all weights at two widths, from the rows of each."""
    lines = []
    for objective, names in WIDTHS.items():
        for width, pair in names.items():
            for name, title in zip(pair, ('ExPLoRA [L]-r32', 'all weights'), strict=True):
                if mine := where(of[width], name=name):
                    lines.append([f'{objective}, width {width}: {title}', str(len(mine)), *gains_of(mine)])
    return markdown_table(['row', 'seeds', *METHODS], lines)


def lengths(rows: list[Row], letter: str) -> list[str]:
    """Gains by length, and which length validation images would have chosen."""
    lines = []
    for key, title in ARMS.items():
        mine = where(rows, name=f'{letter}-{key}', domain='eurosat', images=0)
        steps = sorted({r['steps'] for r in mine})
        if len(steps) < 2:
            continue
        of = {n: where(mine, steps=n) for n in steps}
        best = max(steps, key=lambda n: np.mean([r['validated'] for r in of[n]]))
        for n in steps:
            mark = ' **(chosen)**' if n == best else ''
            lines.append([f'{title}, {n:,} steps{mark}', str(len(of[n])), *gains_of(of[n])])
    return markdown_table(['row', 'seeds', *METHODS], lines)


def _apart(row: Row) -> str:
    """How a row differs from 200 steps of the ViT-Ti/16, for its title."""
    steps = '' if row['steps'] == 200 else f', {row["steps"]:,} steps'
    return steps + (', from the six blocks' if row['source'] == 'depth6' else '')


def forgetting(rows: Mapping[str, list[Row]]) -> list[str]:
    """What was gained where a model was adapted, elsewhere, and on natural images, those of its source."""
    domains, lines = ('eurosat', 'aid', 'natural'), []
    for title, mine in rows.items():
        if mine:
            found = [
                {r['domain']: r['gain']['one']} | {d: t['gain'] for d, t in r['transfer'].items()}
                for r in mine
            ]
            cells = [' / '.join(gained(r[d][m] for r in found) for m in range(3)) for d in domains]
            lines.append([title, str(len(mine)), *cells])
    return markdown_table(['row', 'seeds', *(TITLES[d] for d in domains)], lines)


def attention(rows: Mapping[str, Row]) -> list[str]:
    """A probe that attends to patches beside the linear one of their mean."""
    lines = []
    for title, row in rows.items():
        before, after, *gain = row['attention']
        change = ['', ''] if after == before else [gained([row['gain']['one'][1]]), gained([gain])]
        lines.append(
            [title, f'{100 * row["after"]["one"][1]:.1f}', change[0], f'{100 * after:.1f}', change[1]]
        )
    return markdown_table(['row', 'linear probe', 'gain', 'attending probe', 'gain'], lines)


def blocks(rows: Mapping[str, Row]) -> list[str]:
    """Where patches tell their place best, and what the last blocks know."""
    lines = []
    for title, row in rows.items():
        number, mean, _, place, label = np.array(row['blocks']).T
        best = int(place.argmax())
        ends = f'{mean[-2]:.2f}, {mean[-1]:.2f}'
        lines.append(
            [title, f'{number[best]:.0f} ({place[best]:.2f})', f'{place[-1]:.2f}', f'{label[-1]:.2f}', ends]
        )
    header = [
        'row',
        'place is told best by block',
        'by the last',
        'class by the last',
        'mean eigenvalue, last two',
    ]
    return markdown_table(header, lines)


def free(rows: list[Row], domain: str, source: str = 'vit_ti16') -> list[str]:
    """What may be done to features of the source and of models for nothing; gains over the source."""
    lines = []
    for name, title in READ.items():
        same = where(rows, name=name, domain=domain, source=source, images=0, seed=0)
        mine = [r for r in same if len(r['gain']) > 1]
        gain, after = ({k: v for row in mine for k, v in row[what].items()} for what in ('gain', 'after'))
        blocks = [k for k in gain if k.startswith('block')]
        best = max(blocks, key=lambda k: sum(after[k]), default='')
        first = {} if name == 'source' else {'one': ''}  # over itself the source gains nothing
        if best:
            first = {best: f'block {int(best[5:]) + 1}, the best by test'}
        for key, how in (first | FREE).items():
            if key in gain:
                cells = [gained([pair]) for pair in gain[key]]
                lines.append([', '.join(filter(None, (title, how))), *cells])
    return markdown_table([TITLES[domain], *METHODS], lines)


def costs(measured: Sequence[Row]) -> list[str]:
    """Operations, memory and a core's time of a step, beside those of D-ExPLoRA for as many images."""
    of = {r['name']: r for r in measured}
    titles = D_ROWS | {k: f'{v}, M' for k, v in M_ROWS.items()} | SIMPLER
    lines = []
    for name in (name for name in titles if name in of):
        row, first = of[name], of['D-explora']
        gflop, seconds = (row[k] / row['batch'] for k in ('gflop', 'seconds'))
        shares = (row[k] / row['batch'] * first['batch'] / first[k] for k in ('gflop', 'seconds'))
        more, longer = (f'{share:.2f}' for share in shares)
        lines.append(
            [titles[name], f'{gflop:.2f}', more, f'{1000 * seconds:.0f}', longer, f'{row["gb"]:.2f}']
        )
    header = ['row', 'GFLOP an image', 'ratio', 'ms an image', 'ratio', 'GB of a step']
    return markdown_table(header, lines)


def main(file: Path, folder: Path) -> None:
    """Write the tables and figures."""
    rows, short = read(file), read(file.parents[1] / 'study' / 'runs.jsonl')
    of_six = where(once([*rows, *short]), source='depth6', domain='eurosat', views=6_400)
    carried = {title: where(of_six, name=name) for name, title in FORGETTING.items()}
    beyond = [r for r in rows if FOUR in r.get('gain', ()) and 'transfer' in r]
    models = once(rows)
    here = where(models, domain='eurosat', source='vit_ti16')
    d200 = [r for r in here if r.get('steps') == 200 or r['name'] == 'Diet']
    whole = [r for r in d200 if not r['images'] or r['name'] == 'Diet']
    aid = where(models, domain='aid', source='vit_ti16', steps=200)
    d_rows = {'EuroSAT': whole, 'AID': aid}
    few = {k: CAPACITY[k] for k in ('D-explora', 'D-full')}
    told = {title: where(here, name=name) for name, title in ANALYZED.items()}
    attended, analyzed = (
        {title: found[-1] for title, mine in told.items() if (found := [r for r in mine if what in r])}
        for what in ('attention', 'blocks')
    )
    figures.default_by_length(short, folder / 'default.png')
    figures.by_labels(rows, folder / 'labels.png')
    kept = {
        domain: {title: where(beyond, name=name, domain=domain) for name, title in BEYOND.items()}
        for domain in BUDGETS
    }
    panels = {'six blocks, EuroSAT': carried} | {f'ViT-Ti/16, {TITLES[d]}': kept[d] for d in kept}
    figures.gain_against_loss(panels, folder / 'forgetting.png')
    arms = {key: where(d200, name=f'D-{key}') for key in ('explora', 'full')}
    figures.by_number(
        {'D': arms}, lambda r: r['images'] or figures.ARCHIVE, 'unlabeled tiles', folder / 'images.png'
    )
    trained = {
        letter: {key: where(here, name=f'{letter}-{key}', images=0) for key in ARMS if key != 'scratch'}
        for letter in 'MD'
    }
    steps = sorted({r['steps'] for r in trained['M']['explora']})
    figures.by_number(trained, lambda r: r['steps'], 'steps of 32 tiles', folder / 'lengths.png')
    figures.by_block(analyzed, folder / 'blocks.png')
    figures.by_weights(whole, CAPACITY, folder / 'weights.png')
    figures.memory(read_lines(file.parent / 'speed' / 'peak.jsonl'), folder / 'memory.png')
    sections = {
        'Headline: EuroSAT': headline(rows, 'eurosat'),
        'Headline: EuroSAT, M': headline(rows, 'eurosat', M_ROWS),
        'Headline: AID': headline(rows, 'aid'),
        **{f'Headline: {TITLES[d]}, the six blocks': headline(rows, d, SHIPPED) for d in BUDGETS},
        'D-ExPLoRA less other rows': differences(d_rows, 'D-explora', D_ROWS | SIMPLER),
        'D-ExPLoRA [L]-r64 less other rows': differences(d_rows, 'D-explora-r64', D_ROWS),
        'M-ExPLoRA less other rows, EuroSAT': differences(
            {f'{n:,} steps': where(here, steps=n, images=0) for n in steps},
            'M-explora',
            {f'M-{key}': title for key, title in ARMS.items()},
        ),
        'All weights, by width: EuroSAT': widths({192: whole, 384: of_six}),
        'Length: M on EuroSAT': lengths(here, 'M'),
        'Length: D on EuroSAT': lengths(here, 'D'),
        'Gain against loss: the six blocks, adapted to EuroSAT': forgetting(carried),
        **{f'Gain against loss: the ViT-Ti/16, adapted to {TITLES[d]}': forgetting(kept[d]) for d in kept},
        'Few unlabeled images': gains(d200, few, lambda r: f', {r["images"] or figures.ARCHIVE:,} images'),
        'Trained weights': gains(whole, CAPACITY),
        'Trained weights: AID': gains(aid, CAPACITY),
        "LoRA's rate over the block's": gains(whole, RATIOS),
        **{
            f'Simpler objectives, [L]-r32: {TITLES[d]}': gains(
                [r for r in where(models, domain=d) if r['images'] in (0, 1000)], SIMPLER, _apart
            )
            for d in BUDGETS
        },
        **{f'What costs nothing: {TITLES[d]}': free(rows, d) for d in BUDGETS},
        **{f'What costs nothing: {TITLES[d]}, the six blocks': free(rows, d, 'depth6') for d in BUDGETS},
        'Red, green and blue as groups of bands, M, 600 steps': gains(
            where(models, domain='eurosat'), GROUPS
        ),
        'A probe that attends': attention(attended),
        'What a step costs': costs(read_lines(file.parent / 'costs.jsonl')),
        'What blocks know': blocks(analyzed),
    }
    text = HEAD
    for title, table in sections.items():
        if len(table) > 3:  # a line alone compares nothing
            text += '\n'.join([f'\n## {title}', '', *table, ''])
    with atomic_path(folder / 'README.md') as part:
        part.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:]))
