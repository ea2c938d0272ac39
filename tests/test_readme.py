"""What the README shows is run."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


@pytest.mark.group(name='examples')
def test_the_script_runs_and_its_adapter_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / 'tests').symlink_to(ROOT / 'tests')
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(blocks[0].replace('max_steps=10', 'max_steps=2'), names)
    # In the folder of the logger, of which Lightning chooses one that is installed
    (_,) = (tmp_path / 'runs' / 'script').rglob('adapter.safetensors')
    batch = next(iter(names['datamodule'].train_dataloader()))  # type: ignore[attr-defined]
    names['images'] = torch.nn.functional.interpolate(batch['image'][:2], size=(112, 112))
    shipped = 'explora_geo/models/files/vit_small_patch14_dinov2_depth6_eurosat.safetensors'
    exec(blocks[1].replace('runs/demo/adapter.safetensors', str(ROOT / shipped)), names)
    assert names['features'].patches.shape == (2, 1, 64, 384)  # type: ignore[attr-defined]


def test_every_link_inside_the_repository_resolves() -> None:
    files = [ROOT / 'README.md', *ROOT.glob('docs/*.md'), *ROOT.glob('explora_geo/**/*.md')]
    links = [(f, link) for f in files for link in re.findall(r'\]\(([^)#:]+)\)', f.read_text())]
    assert links
    missing = [f'{f.name}: {link}' for f, link in links if not (f.parent / link).exists()]
    assert not missing


def test_every_command_of_the_readme_exists() -> None:
    from typer.main import get_command

    from explora_geo.cli import app

    known = get_command(app)
    for line in re.findall(r'^explora-geo (.+)$', README, flags=re.MULTILINE):
        words = line.split()
        command = known.commands[words[0]]  # type: ignore[attr-defined]
        if hasattr(command, 'commands'):
            command = command.commands[words[1]]
        options = {o for p in command.params for o in p.opts}
        used = {w for w in words if w.startswith('--')}
        assert command.name in ('fit', 'validate') or used <= options
