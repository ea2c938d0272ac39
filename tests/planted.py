"""Plant one defect at a time and record which test of the fast part catches it: `python tests/planted.py`.

Each defect is what a careless change could do. `tests/planted.md` holds the outcomes in a column per commit.
An interrupted run goes on: rounds that are there already are not repeated.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from explora_geo._atomic import atomic_path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'tests/planted.md'
NOTHING = 'nothing'
MISSED = 'not caught'


class Defect(NamedTuple):
    """A change of one file of `explora_geo`; `old` stands there exactly once."""

    what: str
    file: str
    old: str
    new: str


DEFECTS = (
    Defect(
        'the teacher does not follow the student',
        'objectives/teacher.py',
        'mine.lerp_(theirs, 1 - momentum)',
        'pass',
    ),
    Defect(
        'the teacher drops paths as in training',
        'objectives/dinov2.py',
        'parts = self.teacher.parts.eval()',
        'parts = self.teacher.parts.train()',
    ),
    Defect(
        'the student sees the patches that iBOT hides',
        'objectives/dinov2.py',
        'token_mask=mask.to(crops.device),',
        'token_mask=None,',
    ),
    Defect(
        'the center of the targets has no momentum',
        'objectives/losses.py',
        'Center(size=(1, prototypes), momentum=momentum)',
        'Center(size=(1, prototypes), momentum=0.0)',
    ),
    Defect(
        'the mask ratio of MAE is ignored',
        'objectives/masking.py',
        'int(length * (1 - mask_ratio))',
        'int(length * 0.25)',
    ),
    Defect(
        'the loss of MAE is that of the visible patches',
        'objectives/mae.py',
        '(error * mask).sum() / mask.sum()',
        '(error * (1 - mask)).sum() / (1 - mask).sum()',
    ),
    Defect('LoRA changes K in place of Q', 'adaptation/explora.py', "enumerate('qkv')", "enumerate('kqv')"),
    Defect('LoRA ignores alpha', 'adaptation/lora.py', 'rank, alpha, alpha / rank', 'rank, alpha, 1.0'),
    Defect(
        'the block before an unfrozen one trains in full, too',
        'adaptation/explora.py',
        'if i in unfrozen:',
        'if i in unfrozen or i + 1 in unfrozen:',
    ),
    Defect(
        'merging adds LoRA twice',
        'adaptation/lora.py',
        'self._plain(self.weight + self.delta())',
        'self._plain(self.weight + 2 * self.delta())',
    ),
    Defect('the final norm is left out', 'models/vit.py', 'x = self.norm(x)', 'pass'),
    Defect(
        'resampled positions are mirrored at the diagonal',
        'models/position.py',
        '.permute(0, 3, 1, 2)',
        '.permute(0, 3, 2, 1)',
    ),
    Defect(
        'mean and standard deviation change places in the header of an adapter',
        'models/matching.py',
        'mean, std = (torch.as_tensor(v)',
        'std, mean = (torch.as_tensor(v)',
    ),
    Defect(
        'an adapter lacks the class token',
        'checkpoints/adapter.py',
        "_PRETRAINING = {'mask_token'}",
        "_PRETRAINING = {'mask_token', 'cls_token'}",
    ),
    Defect(
        'bands come in the order of the file, not in that asked for',
        'bands.py',
        'return [positions[canonical(name)] for name in wanted]',
        'return sorted(positions[canonical(name)] for name in wanted)',
    ),
    Defect(
        'held-out images are trained on, too',
        'datamodules/base.py',
        'train, val = Subset(dataset, kept), Subset(dataset, held)',
        'train, val = dataset, Subset(dataset, held)',
    ),
    Defect(
        'a probe does not normalize its images',
        'evaluation/features.py',
        "yield transform(moved) if 'image' in moved else moved",
        'yield moved',
    ),
    Defect(
        'the neighbors of an image include itself',
        'evaluation/probes.py',
        'cross_val_score(model, features, labels, cv=parts)',
        'np.array(model.fit(features, labels).score(features, labels))',
    ),
    Defect(
        'an interval leaves out one side alone',
        'evaluation/probes.py',
        'np.quantile(means, [0.025, 0.975])',
        'np.quantile(means, [0.05, 1])',
    ),
    Defect(
        'the learning rate falls from the first step on, not from the end of the warm-up',
        'trainers/optim.py',
        'warmup_steps=warmup,',
        'warmup_steps=0,',
    ),
    Defect(
        'a resumed run draws other numbers',
        'trainers/resume.py',
        "self._seed = checkpoint.get('random_seed')",
        'self._seed = None',
    ),
    Defect(
        'the report does not name skipped tiles',
        'trainers/artifacts.py',
        "{'count': len(pl_module.skipped), 'files': pl_module.skipped}",
        "{'count': 0, 'files': {}}",
    ),
    Defect(
        'a run that collapses goes on',
        'trainers/guard.py',
        'trainer.should_stop = True',
        'trainer.should_stop = False',
    ),
    Defect(
        'the tiles of a map end one pixel before the edge',
        'maps/grid.py',
        'length - self.tile, stride), length - self.tile]',
        'length - self.tile, stride), length - self.tile - 1]',
    ),
)


def export(commit: str, folder: Path) -> None:
    """Write the files of a commit to a folder."""
    archive = subprocess.run(['git', 'archive', commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter='data')


def anchored(defect: Defect, copy: Path) -> str:
    """The file that a defect changes, if the text to change stands there exactly once."""
    file = copy / 'explora_geo' / defect.file
    text = file.read_text() if file.is_file() else ''
    if text.count(defect.old) != 1:
        sys.exit(
            f'error: {defect.file} holds {defect.old!r} {text.count(defect.old)} times, not once: give the '
            f'defect "{defect.what}" in tests/planted.py the text that the code has now'
        )
    return text


def in_order(defect: Defect | None, copy: Path) -> list[list[str]]:
    """Test files: those that mirror the changed file and its folder, then the others, which take minutes."""
    near, rest = [], []
    for file in sorted(copy.glob('tests/**/test_*.py')):
        mirrors = defect is not None and (
            file.stem.startswith(f'test_{Path(defect.file).stem}')
            or file.parent == (copy / 'tests' / defect.file).parent != copy / 'tests'
        )
        (near if mirrors else rest).append(str(file.relative_to(copy)))
    return [near, rest] if near else [rest]


def first_failure(defect: Defect | None, copy: Path) -> str | None:
    """The first test of the fast part that fails, or None."""
    environment = {**os.environ, 'PYTHONPATH': str(copy), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'}
    options = ['-x', '-q', '--tb=no', '-rfE', '-p', 'no:cacheprovider', '-m', 'not slow and not group']
    for files in in_order(defect, copy):
        command = [sys.executable, '-m', 'pytest', *options, *files]
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        found = re.search(r'^(?:FAILED|ERROR) (.+?)(?: - .*)?$', run.stdout, re.M)
        if found:
            return found[1]
        if run.returncode not in (0, 5):  # 5: all tests of these files are slow
            sys.exit(
                f'error: pytest ended with {run.returncode} and names no test:\n{run.stdout}{run.stderr}'
            )
    return None


def read_page() -> dict[str, dict[str, str]]:
    """Outcomes by commit and defect."""
    if not PAGE.is_file():
        return {}
    rows = [re.split(r' \| ', line[2:-2]) for line in PAGE.read_text().splitlines() if line.startswith('| ')]
    return {
        commit: {row[0]: row[i] for row in rows[1:] if row[i] != ' '} for i, commit in enumerate(rows[0]) if i
    }


def write_page(outcomes: dict[str, dict[str, str]]) -> None:
    """Write all outcomes."""
    names = [NOTHING, *(defect.what for defect in DEFECTS)]
    caught = [
        f'{sum(text != MISSED for name, text in found.items() if name in names[1:])} of {len(DEFECTS)} '
        f'by {commit}'
        for commit, found in outcomes.items()
    ]
    lines = [
        '# Planted defects',
        '',
        'What the fast part of the suite says to one defect at a time, by commit: the first test that fails. '
        'Written by',
        f'`python tests/planted.py`. Caught are {", ".join(caught)}.',
        '',
        f'| defect | {" | ".join(outcomes)} |',
        f'|---{"|---" * len(outcomes)}|',
        *(f'| {n} | {" | ".join(found.get(n, " ") for found in outcomes.values())} |' for n in names),
    ]
    with atomic_path(PAGE) as temporary:
        temporary.write_text('\n'.join(lines) + '\n')


def main() -> None:
    """Run the rounds that the page lacks."""
    parser = argparse.ArgumentParser(description='Plant defects and record which tests catch them.')
    parser.add_argument('--commit', default='HEAD', help='What is tested; the last commit unless given.')
    commit = parser.parse_args().commit
    shown = ['git', 'rev-parse', '--short=7', commit]
    label = subprocess.run(shown, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        export(commit, copy)
        for defect in DEFECTS:
            anchored(defect, copy)
        for defect in (*DEFECTS, None):
            outcomes = read_page()
            what = defect.what if defect else NOTHING
            if what in outcomes.setdefault(label, {}):
                continue
            if defect is None:
                found = first_failure(None, copy)
                if found:
                    sys.exit(f'error: {found} fails without any defect: mend it first')
                outcomes[label][what] = 'all pass'
            else:
                text = anchored(defect, copy)
                file = copy / 'explora_geo' / defect.file
                file.write_text(text.replace(defect.old, defect.new))
                caught = first_failure(defect, copy)
                file.write_text(text)
                outcomes[label][what] = MISSED if caught is None else f'`{caught}`'
            print(f'{what}: {outcomes[label][what]}', flush=True)
            write_page(outcomes)


if __name__ == '__main__':
    main()
