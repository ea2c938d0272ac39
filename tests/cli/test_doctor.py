"""`explora-geo doctor`."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from explora_geo import __version__, doctor
from explora_geo.cli import main
from explora_geo.devices import faster_precision
from explora_geo.models import ViTTiny8_Weights

REQUIREMENTS = ['torch>=2.0', 'rich>=1', 'onnx>=1.16; extra == "onnx"', 'rich>=1; extra == "tests"']


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements that this environment meets, but for the extra of ONNX."""
    monkeypatch.setattr(metadata, 'requires', lambda name: REQUIREMENTS)
    version = metadata.version

    def without_onnx(name: str) -> str:
        if name == 'onnx':
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, 'version', without_onnx)


def test_doctor_says_versions_devices_extras_and_weights(run: Callable[..., str]) -> None:
    printed = ' '.join(run('doctor').split())
    assert f'torch │ {torch.__version__.split("+")[0]}' in printed and '>=2.0' in printed
    assert 'CPU' in printed and 'cores' in printed and f'{faster_precision()}, the faster one' in printed
    assert 'missing onnx: pip install' in printed and 'No problems found.' in printed
    assert 'shipped, 6.0 MB, MIT' in printed


def test_doctor_prints_json_that_names_every_weight(run: Callable[..., str]) -> None:
    found = json.loads(run('doctor', '--json'))
    assert found['explora_geo'] == __version__ and found['problems'] == []
    assert found['extras']['onnx'] == {
        'use': 'explora-geo export to .onnx',
        'missing': ['onnx'],
        'install': 'pip install "explora_geo[onnx]"',
    }
    assert not found['extras']['tests']['missing']
    shipped = found['weights'][str(ViTTiny8_Weights.TINY_IMAGENET_MAE)]
    assert shipped['shipped'] and shipped['megabytes'] > 5


def test_a_downloaded_weight_is_found_in_the_cache(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    file = tmp_path / 'checkpoints' / 'dinov2_vits14_pretrain.pth'
    file.parent.mkdir()
    file.write_bytes(bytes(3_000_000))
    found = json.loads(run('doctor', '--json'))
    assert found['weights']['ViTSmall14_Weights.LVD142M_DINOV2']['megabytes'] == 3.0
    assert found['cache'] == str(file.parent)


@pytest.mark.parametrize('flag', [[], ['--json']])
def test_doctor_fails_where_a_version_is_too_old_or_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flag: list[str]
) -> None:
    monkeypatch.setattr(metadata, 'requires', lambda name: ['rich>=1000', 'nothing-of-this-name>=2'])
    with pytest.raises(SystemExit) as stop:
        main(['doctor', *flag])
    assert stop.value.code == 1
    printed = ' '.join(capsys.readouterr().out.split())
    assert f'rich >=1000 is required but {metadata.version("rich")} is installed' in printed
    assert 'nothing-of-this-name >=2 is required but missing: pip install' in printed


def test_doctor_says_that_torchvision_was_built_for_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    load = builtins.__import__

    def failing(name: str, *args: object, **kwargs: object) -> object:
        if name == 'torchvision':
            raise RuntimeError('operator torchvision::nms does not exist')
        return load(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, '__import__', failing)
    found = doctor.diagnose()
    assert 'torchvision cannot be imported with this version of torch (operator' in found['problems'][0]
    assert found['weights'] == {} and found['devices'] == {}


def test_a_folder_that_is_only_importable_is_told_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, 'requires', missing)
    assert 'importable but not installed' in doctor.diagnose()['problems'][0]
