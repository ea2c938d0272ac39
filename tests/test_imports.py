"""Imports point one way, and `import explora_geo` is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'explora_geo'
MODULES = sorted(PACKAGE.rglob('*.py'))

# What knows nothing of the package, so that every module may import it.
FREE = {'_compat', '_version'}
# What a module, or else its sub-package, may import of ours; its own package's parts are listed too.
ALLOWED = {
    'adaptation': {'adaptation'},
    'bands': set(),
    'models.normalization': set(),
    'models.position': set(),
    'models.tokenizers': {'bands', 'models.position', 'models.tokenizers'},
    'models.blocks': {'models.position'},
    'models.vit': {'models.blocks', 'models.normalization', 'models.position', 'models.tokenizers'},
    'models.decoder': {'models.blocks', 'models.tokenizers', 'models.vit'},
    'models.heads': set(),
    'models.weights': {'models.tokenizers'},
    'models.builders': {'models.blocks', 'models.position', 'models.tokenizers', 'models.vit'},
    'models.matching': {'bands', 'models'},
    'models': {'models'},
    'checkpoints': {'_atomic', 'adaptation', 'bands', 'models', 'checkpoints'},
    'objectives': {'adaptation', 'models', 'objectives', 'transforms'},
    'trainers': {
        *('_atomic', 'adaptation', 'bands', 'checkpoints', 'datasets', 'devices', 'evaluation'),
        *('models', 'objectives', 'trainers', 'transforms'),
    },
    'evaluation': {'_atomic', 'adaptation', 'models', 'checkpoints', 'evaluation'},
    'reports': {'_atomic', 'bands', 'evaluation', 'models', 'objectives', 'reports'},
    'maps': {'_atomic', 'bands', 'checkpoints', 'datasets', 'maps', 'models', 'trainers'},
    'datasets': {'_atomic', 'bands', 'datasets'},
    'transforms': {'bands', 'transforms'},
    'datamodules': {'bands', 'datasets', 'transforms', 'datamodules'},
    'configured': {'checkpoints', 'datamodules', 'datasets', 'models', 'trainers'},
    # Commands stand above everything, and nothing but the command line imports them.
    'cli': {
        *('_adapt', '_cli_console', '_cli_models', 'adaptation'),
        *('configured', 'datasets', 'doctor', 'objectives'),
    },
    '_cli_models': {
        *('_cli_console', 'checkpoints', 'configured', 'devices', 'evaluation', 'maps', 'models', 'trainers')
    },
    '_cli_console': set(),
    'doctor': {'checkpoints', 'devices', 'models'},
    'devices': set(),
    '_adapt_settings': {
        *('adaptation', 'bands', 'checkpoints', 'datamodules', 'models', 'objectives', 'trainers')
    },
    '_adapt_report': {
        *('_adapt_progress', '_adapt_settings', '_version', 'checkpoints', 'datamodules', 'datasets'),
        *('devices', 'evaluation', 'models', 'objectives', 'reports'),
    },
    '_adapt_progress': {'_atomic', 'adaptation', 'models'},
    '_adapt_speed': {'_adapt_settings', 'configured', 'datamodules', 'devices'},
    # The main job is what libraries are for: it stands above them, below the command line.
    '_adapt': {
        *('_adapt_progress', '_adapt_report', '_adapt_settings', '_adapt_speed', 'reports'),
        *('_atomic', 'configured', 'datamodules'),
    },
    '_atomic': set(),
    '_compat': set(),
    '_version': set(),
}


def name_of(path: Path) -> str:
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    package = ['explora_geo', *path.relative_to(PACKAGE).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports the module.
            names |= {
                f'{module}.{alias.name}'
                if (ROOT / Path(*module.split('.')) / f'{alias.name}.py').exists()
                or (ROOT / Path(*module.split('.')) / alias.name / '__init__.py').exists()
                else module
                for alias in node.names
            }
    return names


def ours(path: Path) -> set[str]:
    """The same without the package's name, of our modules only."""
    names = {n.removeprefix('explora_geo').lstrip('.') for n in imported(path) if n.startswith('explora_geo')}
    return names - {''}


def rule_of(name: str) -> set[str] | None:
    parts = name.removesuffix('.__init__').split('.')
    names = ['.'.join(parts[:i]) for i in range(len(parts), 0, -1)]
    return next((ALLOWED[n] for n in names if n in ALLOWED), None)


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    allowed = rule_of(name_of(path))
    if allowed is None:
        assert path.name in ('__init__.py', '__main__.py')
        return
    for name in ours(path) - FREE:
        assert any(name == a or name.startswith(f'{a}.') for a in allowed), name


def graph() -> dict[str, set[str]]:
    """Imports between modules, wherever in a file, for types alone too; a package is its `__init__`."""
    names = {name_of(path).removesuffix('.__init__'): path for path in MODULES}
    return {name: {other for other in ours(path) if other in names} - {name} for name, path in names.items()}


def circular(edges: dict[str, set[str]]) -> set[str]:
    """Modules from which imports lead back to themselves."""
    found = set()
    for start, ahead in edges.items():
        seen: set[str] = set()
        rest = list(ahead)
        while rest:
            name = rest.pop()
            if name not in seen:
                seen.add(name)
                rest += edges[name]
        if start in seen:
            found.add(start)
    return found


def test_no_module_leads_back_to_itself() -> None:
    found = circular(graph())
    assert not found, f'these modules import one another in a circle: {", ".join(sorted(found))}'
    assert circular({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == {'b', 'c'}
    assert {'trainers.pretrain', 'trainers.tasks'} <= graph()['trainers']  # its `__init__`


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_nothing_imports_the_roof(path: Path) -> None:
    assert 'explora_geo' not in imported(path), 'import the module that holds the name, such as _version'


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_nothing_imports_benchmarks_or_tests(path: Path) -> None:
    assert not {n.split('.')[0] for n in imported(path)} & {'benchmarks', 'tests'}


def test_adaptation_needs_torch_only() -> None:
    found = {n.split('.')[0] for p in (PACKAGE / 'adaptation').glob('*.py') for n in imported(p)}
    assert found - set(sys.stdlib_module_names) == {'torch', 'explora_geo'}


def loaded_after(statement: str) -> set[str]:
    code = f'import sys; {statement}; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize('module', ['explora_geo', 'explora_geo.cli'])
def test_the_package_and_its_command_line_import_nothing_heavy(module: str) -> None:
    heavy = {'torch', 'lightning', 'torchgeo', 'timm', 'torchvision', 'rasterio', 'sklearn', 'pandas'}
    heavy |= {'geopandas', 'matplotlib', 'numpy', 'peft', 'transformers', 'segmentation_models_pytorch'}
    assert not loaded_after(f'import {module}') & heavy


@pytest.mark.slow
def test_what_is_optional_is_imported_by_what_needs_it() -> None:
    optional = {'onnx', 'onnxruntime', 'onnxscript', 'wilds', 'pyarrow', 'atheris', 'hypothesis', 'pytest'}
    assert not imported_at_start('explora_geo.checkpoints', 'explora_geo.datamodules') & optional


def imported_at_start(*modules: str) -> set[str]:
    """What our files that are loaded with modules import when they are loaded, whoever else does."""
    names = set()
    for name in loaded_after(f'import {", ".join(modules)}'):
        path = ROOT / Path(*name.split('.'))
        file = path.with_suffix('.py') if path.with_suffix('.py').is_file() else path / '__init__.py'
        if name.startswith('explora_geo') and file.is_file():
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Import):
                    names |= {alias.name.split('.')[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    names.add(node.module.split('.')[0])
    return names


def test_public_names_resolve_and_unknown_ones_do_not() -> None:
    import explora_geo

    for name in explora_geo.__all__:
        assert getattr(explora_geo, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = explora_geo.nothing  # type: ignore[attr-defined]
