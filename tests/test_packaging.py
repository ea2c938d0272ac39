"""The package's metadata says what is true: bounds, versions, scripts, data files."""

import ast
import importlib
import os
import re
import sys
import tomllib
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
BOUNDS = DEPENDENCIES + [Requirement(line) for extra in EXTRAS.values() for line in extra]

# Names that differ on conda-forge
CONDA_NAMES = {'torch': 'pytorch'}

# Imported by the package, but no dependency of its own: parts of those declared
BUNDLED = {'yaml': 'jsonargparse', 'pytorch_lightning': 'lightning', 'transformers': 'peft'}

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


@pytest.mark.skipif('EXPLORA_GEO_LOWEST' not in os.environ, reason='only in make test-lowest')
@pytest.mark.parametrize('requirement', DEPENDENCIES, ids=str)
def test_the_lowest_environment_holds_the_lower_bounds(requirement: Requirement) -> None:
    installed = Version(metadata.version(requirement.name).partition('+')[0])
    assert installed == _lower_bound(requirement)


@pytest.mark.parametrize('package', ['explora_geo', 'benchmarks'])
def test_every_import_is_a_declared_dependency(package: str) -> None:
    optional = [Requirement(line) for name in OPTIONAL for line in EXTRAS[name]]
    declared = {canonicalize_name(r.name) for r in [*DEPENDENCIES, *optional]}
    distributions = metadata.packages_distributions()
    undeclared = set()
    for name in _imported_packages(ROOT / package):
        if name in sys.stdlib_module_names or name in ('explora_geo', 'benchmarks'):
            continue
        owners = [*distributions.get(name, [name]), BUNDLED.get(name, name)]
        if not declared.intersection(canonicalize_name(owner) for owner in owners):
            undeclared.add(name)
    assert not undeclared


def test_there_is_one_version() -> None:
    assert explora_geo.__version__ == metadata.version('explora_geo') == PROJECT['version']


@pytest.mark.parametrize(('script', 'target'), PROJECT['scripts'].items())
def test_console_scripts_are_callable(script: str, target: str) -> None:
    module, _, name = target.partition(':')
    assert callable(getattr(importlib.import_module(module), name))
    (installed,) = metadata.entry_points(group='console_scripts', name=script)
    assert installed.value == target


@pytest.mark.parametrize('package', PYPROJECT['tool']['setuptools']['package-data'])
def test_declared_data_files_are_there(package: str) -> None:
    for pattern in PYPROJECT['tool']['setuptools']['package-data'][package]:
        assert list(Path(str(files(package))).glob(pattern)), f'{package} has no {pattern}'


def test_weights_in_the_package_are_not_ignored_by_its_data_patterns() -> None:
    package = Path(str(files('explora_geo')))
    patterns = PYPROJECT['tool']['setuptools']['package-data']['explora_geo']
    declared = {path for pattern in patterns for path in package.glob(pattern)}
    assert set(package.rglob('*.safetensors')) <= declared
