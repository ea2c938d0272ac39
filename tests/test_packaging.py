"""The package's metadata says what is true: bounds, versions, scripts, data files."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import explora_geo

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
PROJECT = PYPROJECT['project']
EXTRAS = PROJECT['optional-dependencies']
DEPENDENCIES = [Requirement(line) for line in PROJECT['dependencies']]
DATA_FILES = PYPROJECT['tool']['setuptools']['package-data']
#: Folders of the packages.
FOLDERS = {'explora_geo': 'explora_geo', 'explora_bench': 'benchmarks'}
OFFLINE = ['--no-deps', '--no-index', '--quiet']
BOUNDS = DEPENDENCIES + [Requirement(line) for extra in EXTRAS.values() for line in extra]

# Names that differ on conda-forge
CONDA_NAMES = {'torch': 'pytorch'}

# Imported by the package, but no dependency of its own: parts of those declared
BUNDLED = {
    'yaml': 'jsonargparse',
    'pytorch_lightning': 'lightning',
    'packaging': 'lightning',
    'transformers': 'peft',
    'huggingface_hub': 'timm',
    'threadpoolctl': 'scikit-learn',
}

# Extras whose packages are imported by the functions that need them
OPTIONAL = ('onnx', 'parquet', 'wilds')


def _lower_bound(requirement: Requirement) -> Version:
    (bound,) = [s.version for s in requirement.specifier if s.operator == '>=']
    return Version(bound)


def _imported_packages(folder: Path) -> set[str]:
    names = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module)
    return {name.split('.')[0] for name in names}


@pytest.mark.parametrize('requirement', BOUNDS, ids=str)
def test_every_dependency_has_a_lower_bound_with_its_reason(requirement: Requirement) -> None:
    bound = next(s.version for s in requirement.specifier if s.operator == '>=')
    reason = rf'# {re.escape(requirement.name)} {re.escape(bound)}\+ required \w+'
    assert re.search(reason, (ROOT / 'pyproject.toml').read_text()), f'no comment like {reason!r}'


def test_the_conda_environment_agrees_with_pyproject() -> None:
    environment = yaml.safe_load((ROOT / 'environment.yml').read_text())
    listed = [Requirement(line) for line in environment['dependencies'] if isinstance(line, str)]
    conda = {r.name: r.specifier for r in listed if r.name != 'pip'}
    expected = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in DEPENDENCIES}
    expected['python'] = SpecifierSet(PROJECT['requires-python'])
    assert conda == expected


@pytest.mark.parametrize('requirement', DEPENDENCIES, ids=str)
def test_the_installed_version_is_one_the_metadata_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)


@pytest.mark.parametrize('requirement', [*DEPENDENCIES, *map(Requirement, EXTRAS['tests'])], ids=str)
def test_the_oldest_versions_are_pinned(requirement: Requirement) -> None:
    pins = [Requirement(line) for line in (ROOT / 'constraints' / 'oldest.txt').read_text().splitlines()]
    (pinned,) = [pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
    (version,) = [spec.version for spec in pinned.specifier]
    # `1.5` may stand for a first release `1.5.0`, and a bound of one package may lift that of another.
    assert requirement.specifier.contains(version, prereleases=True), 'run make constraints'
    assert Version(version) == _lower_bound(requirement), 'run make constraints'


@pytest.mark.skipif('EXPLORA_GEO_LOWEST' not in os.environ, reason='only in make test-lowest')
@pytest.mark.parametrize('requirement', DEPENDENCIES, ids=str)
def test_the_lowest_environment_holds_the_lower_bounds(requirement: Requirement) -> None:
    installed = Version(metadata.version(requirement.name).partition('+')[0])
    assert installed == _lower_bound(requirement)


@pytest.mark.parametrize('package', FOLDERS.values())
def test_every_import_is_a_declared_dependency(package: str) -> None:
    optional = [Requirement(line) for name in OPTIONAL for line in EXTRAS[name]]
    declared = {canonicalize_name(r.name) for r in [*DEPENDENCIES, *optional]}
    distributions = metadata.packages_distributions()
    undeclared = set()
    for name in _imported_packages(ROOT / package):
        if name in sys.stdlib_module_names or name == 'explora_geo':
            continue
        owners = [*distributions.get(name, [name]), BUNDLED.get(name, name)]
        if not declared.intersection(canonicalize_name(owner) for owner in owners):
            undeclared.add(name)
    assert not undeclared


def test_benchmarks_do_not_know_their_name() -> None:
    named = re.compile(r'^\s*(?:from|import) (?:benchmarks|explora_bench)|[\'":] ?benchmarks\.\w', re.M)
    files = [p for p in (ROOT / 'benchmarks').rglob('*') if p.suffix in ('.py', '.yaml')]
    assert files and not [p for p in files if named.search(p.read_text())]


def test_the_version_stands_in_one_place() -> None:
    assert 'version' not in PROJECT and PROJECT['dynamic'] == ['version']
    assert PYPROJECT['tool']['setuptools']['dynamic']['version'] == {
        'attr': 'explora_geo._version.__version__'
    }
    assert explora_geo.__version__ == metadata.version('explora_geo')
    # A citation names the version that was used, which the file cannot know.
    assert 'version' not in yaml.safe_load((ROOT / 'CITATION.cff').read_text())


def test_the_changelog_is_kept_and_its_newest_version_is_this_one() -> None:
    text = (ROOT / 'CHANGELOG.md').read_text()
    versions = re.findall(
        r'^## (?:\[)?(\d+\.\d+\.\d+)(?:\])? (?:\(unreleased\)|- \d{4}-\d\d-\d\d)$', text, re.M
    )
    assert versions[0] == explora_geo.__version__
    assert sorted(versions, key=Version, reverse=True) == versions
    kinds = {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
    assert set(re.findall(r'^### (.+)$', text, re.M)) <= kinds
    assert len(re.findall('^## ', text, re.M)) == len(versions)


def test_the_citation_names_the_paper_as_the_readme_does() -> None:
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)
    assert citation['license'] == PROJECT['license']
    paper, readme = citation['preferred-citation'], (ROOT / 'README.md').read_text()
    assert paper['title'] in readme and f'year = {{{paper["year"]}}}' in readme
    names = ' and '.join(f'{a["family-names"]}, {a["given-names"]}' for a in paper['authors'])
    assert names in readme and paper['url'] in readme


@pytest.fixture(scope='module')
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, which builds leave their traces in."""
    root = tmp_path_factory.mktemp('clone')
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, root)
    for name in FOLDERS.values():
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__'))
    return root


@pytest.fixture(scope='module')
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sources."""
    out = tmp_path_factory.mktemp('wheel')
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-build-isolation',
        *OFFLINE,
        '--wheel-dir',
        str(out),
    ]
    subprocess.run([*command, str(clone)], check=True, capture_output=True, text=True)
    (built,) = out.glob('*.whl')
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_modules_and_data_files_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f'explora_geo-{explora_geo.__version__}-py3-none-any.whl'
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if '.dist-info/' not in n}
    expected = set()
    for package, folder in FOLDERS.items():
        found = [p for pattern in ('**/*.py', *DATA_FILES[package]) for p in (ROOT / folder).glob(pattern)]
        expected |= {f'{package}/{p.relative_to(ROOT / folder)}' for p in found if p.is_file()}
    assert held == expected and 'explora_geo/py.typed' in held


@pytest.mark.parametrize(
    'kind',
    [
        pytest.param('wheel', marks=pytest.mark.group(name='commands')),
        pytest.param('editable', marks=pytest.mark.group(name='commands')),
    ],
)
def test_both_command_lines_work_in_an_empty_folder(
    clone: Path, wheel: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv('PYTHONPATH', raising=False)
    venv.create(tmp_path / 'venv', with_pip=False)
    python = tmp_path / 'venv' / 'bin' / 'python'
    (site,) = (tmp_path / 'venv' / 'lib').glob('*/site-packages')
    (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
    what = [str(wheel)] if kind == 'wheel' else ['--no-build-isolation', '--editable', str(clone)]
    pip = [sys.executable, '-m', 'pip', '--python', str(python)]
    subprocess.run([*pip, 'install', *OFFLINE, *what], check=True, capture_output=True)
    (empty := tmp_path / 'empty').mkdir()

    def printed(*command: object) -> str:
        done = subprocess.run(list(map(str, command)), cwd=empty, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    home = {'wheel': lambda name: site / name, 'editable': lambda name: clone / FOLDERS[name]}[kind]
    code = 'import explora_bench, explora_geo; print(explora_geo.__file__, explora_bench.__file__)'
    assert printed(python, '-c', code).split() == [str(home(name) / '__init__.py') for name in FOLDERS]
    unknown = "import importlib.util; print(importlib.util.find_spec('benchmarks'))"
    assert printed(python, '-c', unknown).strip() == 'None'
    scripts = tmp_path / 'venv' / 'bin'
    assert 'SatMAE' in printed(scripts / 'explora-bench', 'list', '1')
    inspected = printed(scripts / 'explora-geo', 'weights', 'inspect', 'ViTTiny8_Weights.TINY_IMAGENET_MAE')
    assert 'vit_tiny_patch8' in inspected


@pytest.mark.parametrize(('script', 'target'), PROJECT['scripts'].items())
def test_console_scripts_are_callable(script: str, target: str) -> None:
    module, _, name = target.partition(':')
    assert callable(getattr(importlib.import_module(module), name))
    (installed,) = metadata.entry_points(group='console_scripts', name=script)
    assert installed.value == target


@pytest.mark.parametrize('package', DATA_FILES)
def test_declared_data_files_are_there(package: str) -> None:
    for pattern in DATA_FILES[package]:
        assert list(Path(str(files(package))).glob(pattern)), f'{package} has no {pattern}'


def test_weights_in_the_package_are_not_ignored_by_its_data_patterns() -> None:
    package = Path(str(files('explora_geo')))
    declared = {path for pattern in DATA_FILES['explora_geo'] for path in package.glob(pattern)}
    assert set(package.rglob('*.safetensors')) <= declared
