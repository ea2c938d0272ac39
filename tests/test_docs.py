"""What README and docs/ say is true: commands and code blocks run, links resolve, pages are up to date."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from typer.main import get_command

import benchmarks.__main__
from benchmarks.tables.rows import get_table
from benchmarks.tables.scales import get_scale
from explora_geo import cli
from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_weights, save_adapter
from explora_geo.models import create_vit
from explora_geo.models.weights import ViTSmall14_Weights
from tests.test_imports import MODULES, PACKAGE, ours

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = [ROOT / 'README.md', *sorted(DOCS.rglob('*.md'))]
# Pages that are checked for links alone: cards and notes beside data and weights
NOTES = [ROOT / 'CHANGELOG.md', *ROOT.glob('explora_geo/**/*.md'), *ROOT.glob('tests/data/**/README.md')]
SOURCE = 'ViTTiny8_Weights.TINY_IMAGENET_MAE'
DEPTH6 = ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6

#: Commands that take long, by their beginning: what is added to run them on a few tiles for a step or two.
#: The shipped tiles of tests/data/eurosat_rgb are replaced by a few of them for all commands.
SHORTER = {
    'explora-geo adapt ': '--minutes 0.02 --quick',
    'explora-geo fit': '--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 '
    '--trainer.enable_progress_bar false --trainer.enable_model_summary false',
    'explora-geo fit --config tests/conf/pretrain_mae_temporal.yaml': '--print_config',  # fMoW is not shipped
    'explora-geo probe': '--epochs 1 --iterations 2 --few-iterations 2 --seeds 2 --batch-size 10',
}
#: Lines that stand for a user's own files: their options are parsed, and nothing runs.
PARSED = ('run.yaml', 'scene.tif', 'last.ckpt', 'FOLDER', 'FILE', 'model.safetensors', 'base.safetensors')
#: Commands at a scale of hours, whose sources and results are not there: their options are parsed.
HOURS = tuple(f'explora-bench {name} ' for name in ('plan', 'run', 'report', 'compare'))
#: Measurements of minutes: their options are parsed here, and tests/benchmarks/speed runs small ones.
MEASURED = tuple(f'explora-bench {name} ' for name in ('speed', 'peak'))
#: Numbers of code blocks that take long, and what they are replaced by.
SMALLER = {'max_steps=10': 'max_steps=2'}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of a page."""
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(), flags=re.DOTALL | re.MULTILINE)


def lines(page: Path) -> list[str]:
    """Shell commands of a page, without comments, continued lines joined."""
    text = '\n'.join(blocks(page, 'sh')).replace('\\\n', ' ')
    return [shlex.join(words) for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope='module')
def few_tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the shipped tiles in their folders."""
    root = tmp_path_factory.mktemp('few') / 'eurosat_rgb'
    for part, count in (('train', 24), ('test', 4)):
        for folder in sorted((ROOT / 'tests/data/eurosat_rgb' / part).iterdir()):
            target = root / part / folder.name
            target.mkdir(parents=True)
            for path in sorted(folder.glob('*.jpg'))[:count]:
                shutil.copy(path, target)
    return root


@pytest.fixture(scope='module')
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves behind: an adapter of the shipped weights."""
    vit, config = create_vit(DEPTH6.meta['model'], img_size=112), ExPLoRAConfig.parse('[L]-r32')
    load_weights(vit, DEPTH6)
    explora(vit, config)
    file = tmp_path_factory.mktemp('demo') / 'adapter.safetensors'
    save_adapter(file, vit, DEPTH6.meta['model'], config)
    return file


@pytest.fixture
def clone(tmp_path: Path, few_tiles: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in that looks like a clone after `make demo`, with few tiles and nothing written."""
    for name in ('explora_geo', 'docs'):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / 'benchmarks', tmp_path / 'benchmarks')  # measurements write into results/
    for name in ('conf', 'data'):
        for path in (ROOT / 'tests' / name).iterdir():
            target = tmp_path / 'tests' / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(few_tiles if path.name == 'eurosat_rgb' else path)
    (tmp_path / 'runs/demo').mkdir(parents=True)
    shutil.copy(adapter, tmp_path / 'runs/demo')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run a line of a page in the clone; any failure is an error."""

    def run(line: str) -> None:
        words = shlex.split(line)
        match words[0]:
            case 'explora-geo' | 'explora-bench':
                long = f'{line} '.startswith(MEASURED) or ('--scale small' in line and line.startswith(HOURS))
                if long or any(word.endswith(PARSED) and not (clone / word).exists() for word in words):
                    parse(words)
                else:
                    longest = max((s for s in SHORTER if line.startswith(s)), key=len, default='')
                    # A plan stays one, and is quick
                    added = '' if '--dry-run' in words else SHORTER.get(longest, '')
                    call(words + shlex.split(added), monkeypatch)
            case 'make':
                check_make(words[1:])
            case 'pip':
                check_pip(words[1:])
            case 'conda':
                assert words[1:4] == ['env', 'create', '--file'] and (ROOT / words[4]).is_file()
            case 'torchgeo-bench':  # another project's command: what it reads of ours is there
                assert (ROOT / 'benchmarks/conf/model/explora_geo.yaml').is_file()
                assert 'model=explora_geo' in words and 'benchmarks/conf]' in words[2]
            case other:
                pytest.fail(f'no check for {other}: run it or parse it here')

    return run


def parse(words: list[str]) -> None:
    """Let the parser of a command read its options, and run nothing."""
    app = cli.app if words[0] == 'explora-geo' else benchmarks.__main__.app
    command, name, rest = get_command(app), words[0], words[1:]
    while hasattr(command, 'commands'):
        name, command, rest = rest[0], command.commands[rest[0]], rest[1:]
    command.make_context(name, rest)


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line of ours in this process."""
    monkeypatch.setattr(sys, 'argv', words)  # LightningCLI looks there
    try:
        cli.run_app(cli.app if words[0] == 'explora-geo' else benchmarks.__main__.app, words[1:])
    except SystemExit as stop:
        assert not stop.code, shlex.join(words)


def check_make(words: list[str]) -> None:
    """The targets and variables of a call of make exist."""
    text = (ROOT / 'Makefile').read_text()
    for word in words:
        name, assigned, _ = word.partition('=')
        found = rf'^{name} \?=' if assigned else rf'^{name}:'
        assert re.search(found, text, flags=re.MULTILINE), word


def check_pip(words: list[str]) -> None:
    """What is installed is this package, with extras that it has."""
    import tomllib

    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    assert words[0] == 'install'
    for word in words[1:]:
        if word.startswith('-') or word == '.':
            continue
        requirement = Requirement(word.removeprefix('.') if word.startswith('.[') else word)
        assert requirement.name == project['name']
        assert requirement.extras <= set(project['optional-dependencies'])


@pytest.mark.parametrize('page', [p for p in PAGES if lines(p)], ids=name_of)
def test_every_command_of_a_page_has_options_that_its_parser_knows(page: Path, clone: Path) -> None:
    for line in lines(page):
        if (words := shlex.split(line))[0].startswith('explora-'):
            parse(words)


@pytest.mark.parametrize('page', [p for p in PAGES if blocks(p, 'python')], ids=name_of)
def test_every_code_block_of_a_page_compiles(page: Path) -> None:
    for block in blocks(page, 'python'):
        compile(block, name_of(page), 'exec')


@pytest.mark.group(name='commands')
@pytest.mark.parametrize('page', [p for p in PAGES if lines(p) and p.name != 'cli.md'], ids=name_of)
def test_every_command_of_a_page_runs(page: Path, shell: Callable[[str], None]) -> None:
    for line in lines(page):
        shell(line)


@pytest.mark.group(name='examples')
@pytest.mark.parametrize('page', [p for p in PAGES if blocks(p, 'python')], ids=name_of)
def test_every_code_block_of_a_page_runs(page: Path, clone: Path) -> None:
    # What the text before a block speaks of, and no more
    names: dict[str, Any] = {'images': torch.zeros(2, 3, 112, 112)}
    for block in blocks(page, 'python'):
        for long, short in SMALLER.items():
            block = block.replace(long, short)
        exec(compile(block, name_of(page), 'exec'), names)


def test_code_blocks_are_of_languages_that_are_checked_here() -> None:
    found = {
        (name_of(p), language) for p in PAGES for language in re.findall(r'^```(\w+)', p.read_text(), re.M)
    }
    assert {language for _, language in found} <= {'sh', 'python', 'yaml', 'mermaid', 'bibtex', 'text'}


def test_every_yaml_block_is_a_table_or_a_scale(tmp_path: Path) -> None:
    found = [block for page in PAGES for block in blocks(page, 'yaml')]
    scales = [block.startswith('base:') for block in found]
    assert any(scales) and not all(scales)
    for block, is_scale in zip(found, scales, strict=True):
        path = tmp_path / 'mine.yaml'
        path.write_text(block)
        assert get_scale(str(path)).sources if is_scale else get_table(str(path)).rows


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Links of a page into the repository: path, which may be empty, and anchor."""
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in found:
        if not re.match(r'[a-z]+:', link):
            path, _, anchor = link.partition('#')
            yield path, anchor


@pytest.mark.parametrize('page', [*PAGES, *NOTES], ids=name_of)
def test_every_link_inside_the_repository_resolves(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r'^#+ (.+)$', target.read_text(), re.M)}, anchor


def test_pages_are_found_from_the_first_page_of_the_documentation() -> None:
    linked = {(DOCS / path).resolve() for path, _ in links(DOCS / 'README.md')}
    assert set(DOCS.rglob('*.md')) - {DOCS / 'README.md'} <= linked


def generator() -> ModuleType:
    spec = util.spec_from_file_location('generate', DOCS / 'generate.py')
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('page', ['cli.md', 'configuration.md'])
def test_reference_pages_are_what_the_code_says(page: str) -> None:
    assert (DOCS / page).read_text() == generator().PAGES[page](), 'run make docs'


def test_the_reference_explains_every_key() -> None:
    rows = re.findall(r'^\| `.*$', (DOCS / 'configuration.md').read_text(), flags=re.MULTILINE)
    assert len(rows) > 200 and not [row for row in rows if row.endswith('|  |')]


def test_the_picture_of_the_architecture_is_that_of_the_imports() -> None:
    (picture, *_) = blocks(DOCS / 'contributing.md', 'mermaid')
    arrows = set(re.findall(r'^\s*(\w+) --> (\w+)$', picture, flags=re.MULTILINE))
    drawn = {name for arrow in arrows for name in arrow}
    real = {
        (top, name.split('.')[0])
        for path in MODULES
        for name in ours(path)
        if (top := path.relative_to(PACKAGE).parts[0].removesuffix('.py')) != name.split('.')[0]
        and {top, name.split('.')[0]} <= drawn
    }
    assert arrows <= real
    reached = set(arrows)
    while more := {(a, d) for a, b in reached for c, d in arrows if b == c} - reached:
        reached |= more
    assert real <= reached
    packages = {p.parent.name for p in PACKAGE.glob('*/__init__.py')}
    assert packages <= drawn
