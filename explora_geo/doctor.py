"""Diagnosis of the installation: versions, missing packages and how to install them."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from explora_geo._version import __version__

#: Purpose of each extra of the package.
_EXTRAS = {
    'onnx': 'explora-geo export to .onnx',
    'parquet': 'explora-geo map with GeoParquet files',
    'wilds': 'downloads of Camelyon17 and iWildCam',
    'notebooks': 'the notebooks in JupyterLab',
    'tests': 'the test suite',
}


def diagnose() -> dict[str, Any]:
    """Collect the facts that `doctor` shows.

    Returns:
        Versions by package, devices, extras, named weights, their cache, and problems; JSON-ready.
    """
    from packaging.requirements import Requirement

    problems, broken = [], ''
    try:
        stated = [Requirement(line) for line in metadata.requires('explora_geo') or []]
    except metadata.PackageNotFoundError:
        stated = []
        problems.append('explora_geo is importable but not installed: pip install -e . in its folder')
    required = [r for r in stated if r.marker is None or r.marker.evaluate({'extra': ''})]
    packages = {requirement.name: _installed(requirement) for requirement in required}
    for name, row in packages.items():
        if not row['ok']:
            have = f'but {row["version"]} is installed' if row['version'] else 'but missing'
            problems.append(f'{name} {row["needed"]} is required {have}: pip install "{name}{row["needed"]}"')
    try:
        import torchvision  # noqa: F401 - fails on import if built for another torch
    except (ImportError, RuntimeError, AttributeError) as error:
        broken = str(error).split('\n')[0]
        problems.append(
            f'torchvision cannot be imported with this version of torch ({broken}): install both from the '
            'same source, https://pytorch.org/get-started'
        )
    extras = {}
    for name, use in _EXTRAS.items():
        parts = [r for r in stated if r.marker and r not in required and r.marker.evaluate({'extra': name})]
        missing = [r.name for r in parts if not _installed(r)['ok']]
        extras[name] = {'use': use, 'missing': missing, 'install': f'pip install "explora_geo[{name}]"'}
    return {
        'explora_geo': __version__,
        'python': platform.python_version(),
        'system': f'{platform.system()} {platform.machine()}',
        'packages': packages,
        'devices': {} if broken else _devices(),
        'extras': extras,
        **({'weights': {}, 'cache': ''} if broken else _weights()),
        'problems': problems,
    }


def _installed(requirement: Any) -> dict[str, Any]:
    """Return the installed version of a package, the required one, and whether they match."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        version = ''
    fits = bool(version) and requirement.specifier.contains(version, prereleases=True)
    return {'version': version, 'needed': str(requirement.specifier), 'ok': fits}


def _devices() -> dict[str, str]:
    """Describe the CPU and the GPUs that torch can use."""
    import torch

    from explora_geo.devices import faster_precision

    found = {'CPU': f'{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found[f'cuda:{i}'] = (
            f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, '
            f'bfloat16 {"yes" if bfloat16 else "no"}'
        )
    if torch.backends.mps.is_available():
        found['mps'] = 'Apple GPU'
    if len(found) == 1:
        found['GPU'] = 'none that torch can use'
    chosen = faster_precision()
    found['precision'] = f'{chosen}, the faster one here and the default for training'
    return found


def _processor() -> str:
    """Return the name of the CPU."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _weights() -> dict[str, Any]:
    """Return the named weights, with their size if they are on disk, and the cache folder."""
    from urllib.parse import urlparse

    from explora_geo.checkpoints.remote import local_file
    from explora_geo.models.weights import all_weights

    rows = {}
    for name, entry in all_weights().items():
        path = local_file(entry.url)
        size = path.stat().st_size / 1e6 if path.is_file() else 0.0
        rows[name] = {
            'megabytes': round(size, 1),
            'license': entry.meta['license'],
            'shipped': urlparse(entry.url).scheme == 'file',
        }
    cache: Path = local_file('https://host/any').parent
    return {'weights': rows, 'cache': str(cache)}
