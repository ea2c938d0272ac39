"""The audit of dependencies tells what it knows from what it could not look up."""

import sysconfig
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def audit() -> ModuleType:
    spec = util.spec_from_file_location('audit', ROOT / 'docs' / 'audit.py')
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_families_are_the_strictest_that_a_licence_names(audit: ModuleType) -> None:
    for license, expected in {
        'MPL-2.0 AND MIT': 'MPL-2.0',
        'GNU General Public License v3 (GPLv3)': 'GPL',
        'GNU Lesser General Public License v2 (LGPLv2)': 'LGPL',
        'Apache Software License; BSD License': 'Apache-2.0',
        'LicenseRef-NVIDIA-Proprietary': 'proprietary',
        'UNKNOWN': 'not stated',
    }.items():
        assert audit.family('any', license) == expected
    assert audit.family('atheris', 'UNKNOWN') == 'Apache-2.0'


def test_what_was_not_looked_up_is_not_called_safe(audit: ModuleType) -> None:
    missing = {'name': 'a', 'skip_reason': 'not found'}
    bad = {'name': 'b', 'version': '1', 'vulns': [{'id': 'CVE-1', 'fix_versions': ['2']}]}
    assert audit.advisories({'dependencies': [missing]}) == ([], 0, 1)
    assert audit.advisories({'dependencies': [missing, bad]}) == (['b 1: CVE-1, fix: 2'], 1, 1)


def test_no_copyleft_is_installed_that_the_page_does_not_name(audit: ModuleType) -> None:
    page = (ROOT / 'docs' / 'licenses.md').read_text()
    # not the whole path: setuptools, once imported, puts packages of its own there
    for distribution in metadata.distributions(path=[sysconfig.get_path('purelib')]):
        about = distribution.metadata
        texts = [about.get('License-Expression') or '', *(about.get_all('Classifier') or [])]
        license = ' '.join(text for text in texts if text.startswith('License') or text == texts[0])
        if audit.family(about['Name'], license) in audit.COPYLEFT:
            assert about['Name'].lower() in page, f'{about["Name"]}: {license}, run make audit'
