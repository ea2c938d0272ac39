"""Names of rasters that only GDAL opens, and what tells them from changed ones."""

import os
import zipfile
from pathlib import Path

import pytest

from explora_geo.datasets.remote import identify, locate, short_name
from tests.http_ranges import Ranges


@pytest.mark.parametrize(
    'name',
    [
        'https://host/a/scene.tif?token=1',
        '/vsicurl/http://host/scene.tif',
        '/vsis3/bucket/scene.tif',
        's3://bucket/scene.tif',
        '/vsizip/folder/a.zip/scene.tif',
        'NETCDF:series.nc:band',
    ],
)
def test_what_only_gdal_opens_stays_as_it_is(name: str) -> None:
    assert locate(name) == name and short_name(name) in ('scene.tif', 'NETCDF:series.nc:band')


@pytest.mark.parametrize(
    'name', ['https://host/scene.tif', '/vsicurl/http://host/scene.tif', 's3://b/scene.tif']
)
def test_slashes_that_a_path_folded_come_back(name: str) -> None:
    assert locate(Path(name)) == name


def test_files_on_disk_are_paths(tmp_path: Path) -> None:
    odd = tmp_path / 'NETCDF:odd'
    odd.touch()
    for given in (odd, str(odd), odd.as_uri()):
        assert locate(given) == odd
    assert locate('scenes/missing.tif') == Path('scenes/missing.tif')


def test_a_url_is_known_by_what_the_server_says(tmp_path: Path) -> None:
    (tmp_path / 'a.tif').write_bytes(b'12345')
    with Ranges(tmp_path) as server:
        url = f'{server.url}/a.tif'
        plain = identify(url)
        assert plain == {'url': url, 'size': '5', 'changed': plain['changed']} and plain['changed']
        assert server.sent == 1
        assert {**identify(f'/vsicurl/{url}'), 'url': url} == plain
        os.utime(tmp_path / 'a.tif', (1, 1))
        assert identify(url)['changed'] not in (None, plain['changed'])
        server.set_validators(etag=False, modified=True)
        assert identify(url)['changed'] == 'Thu, 01 Jan 1970 00:00:01 GMT'
        server.set_validators(etag=False)
        assert identify(url)['changed'] is None
        assert identify(f'{server.url}/missing.tif')['changed'] is None
        server.set_validators()
        (tmp_path / 'b.zip').write_bytes(b'123')
        assert identify(f'/vsizip/vsicurl/{server.url}/b.zip/in/a.tif')['size'] == '3'
    assert identify(url)['changed'] is None  # nobody answers


def test_a_scene_in_an_archive_is_as_old_as_the_archive(tmp_path: Path) -> None:
    archive = tmp_path / 'a.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('in/b.tif', 'x')
    for name in (
        f'/vsizip/{archive}/in/b.tif',
        f'/vsizip/{{{archive}}}/in/b.tif',
        f'zip://{archive}!in/b.tif',
    ):
        assert identify(name) == {
            'url': name,
            'size': archive.stat().st_size,
            'changed': archive.stat().st_mtime_ns,
        }
    assert identify('s3://bucket/a.tif')['changed'] is None
