"""What other packages do not promise is where `_compat.py` takes it from, which alone takes it."""

import ast
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.environments import SLURMEnvironment
from timm.layers import Attention
from torch.testing import assert_close

from explora_geo import _compat

PACKAGE = Path(__file__).parents[1] / 'explora_geo'
# Whose names that begin with an underscore are looked for
FOREIGN = {
    *('torch', 'torchvision', 'timm', 'lightning', 'torchgeo', 'segmentation_models_pytorch', 'rasterio'),
    *('jsonargparse', 'kornia', 'safetensors', 'sklearn', 'typer'),
}
# Objects of Lightning and torch by the names that our code gives them
HELD = {'trainer', 'fit_loop', 'epoch_loop', 'loop', 'optimizer', 'environment', 'strategy', 'loader'}


def fit(model: LightningModule, folder: Path, **kwargs: Any) -> Trainer:
    quiet: dict[str, Any] = {
        **{'accelerator': 'cpu', 'default_root_dir': folder, 'logger': False, 'max_steps': 1},
        **{'enable_progress_bar': False, 'enable_checkpointing': False, 'enable_model_summary': False},
        'limit_val_batches': 0,
    }
    trainer = Trainer(**{**quiet, **kwargs})
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        trainer.fit(model)
    return trainer


def hparams_are_logged(folder: Path) -> bool:
    class Task(BoringModel):
        def __init__(self, size: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters()

    task = Task()
    _compat.log_hparams(task, {'size': 2})
    return task.hparams['size'] == 2 and task.hparams_initial['size'] == 2


def a_fetcher_gives_batches(folder: Path) -> bool:
    class Task(BoringModel):
        def on_train_start(self) -> None:
            found.append(next(iter(_compat.data_fetcher(self.trainer))))

    found: list[Any] = []
    fit(Task(), folder)
    return found[0][0].shape == (1, 32)


def slurm_is_known(folder: Path) -> bool:
    environment = SLURMEnvironment(auto_requeue=True)
    trainer = Trainer(plugins=[environment], accelerator='cpu', logger=False, enable_checkpointing=False)
    plain = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
    return _compat.slurm_requeue_signal(trainer) is not None and _compat.slurm_requeue_signal(plain) is None


def fused_optimizers_are_clipped(folder: Path) -> bool:
    class Task(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), fused=True)
            _compat.unscaled_by_clipping(optimizer)
            return optimizer

    return fit(Task(), folder, gradient_clip_val=1.0).global_step == 1


def graphs_are_limited(folder: Path) -> bool:
    found = []
    for before in (8, 200):
        with torch._dynamo.config.patch(recompile_limit=before):
            with _compat.many_graphs():
                found.append(torch._dynamo.config.recompile_limit)
            found.append(torch._dynamo.config.recompile_limit)
    return found == [128, 8, 200, 200]


def weights_are_normed(folder: Path) -> bool:
    direction, gain = torch.randn(4, 3), torch.rand(4, 1)
    expected = gain * torch.nn.functional.normalize(direction, dim=1)
    assert_close(_compat.weight_norm(direction, gain), expected)
    return True


def attention_is_timms(folder: Path) -> bool:
    attention = Attention(8, num_heads=2)
    before = attention.fused_attn
    _compat.fuse_attention(attention, not before)
    return attention.fused_attn is not before


def decoders_are_classes(folder: Path) -> bool:
    return all(isinstance(_compat.smp_decoder(name), type) for name in _compat._DECODERS)


def errors_of_gdal_are_exceptions(folder: Path) -> bool:
    return issubclass(_compat.CPLE_OutOfMemoryError, _compat.CPLE_BaseError)


def tasks_are_modules(folder: Path) -> bool:
    return issubclass(_compat.BaseTask, LightningModule)


def weights_are_enums(folder: Path) -> bool:
    from torchvision.models import ResNet18_Weights

    return issubclass(ResNet18_Weights, _compat.WeightsEnum) and isinstance(
        ResNet18_Weights.DEFAULT.value, _compat.Weights
    )


def norms_have_one_base(folder: Path) -> bool:
    return issubclass(torch.nn.BatchNorm2d, _compat.BatchNorm) and issubclass(
        torch.nn.SyncBatchNorm, _compat.BatchNorm
    )


@pytest.mark.parametrize(
    ('package', 'check'),
    [
        ('lightning', hparams_are_logged),
        ('lightning', a_fetcher_gives_batches),
        ('lightning', slurm_is_known),
        ('lightning', fused_optimizers_are_clipped),
        ('torch', graphs_are_limited),
        ('torch', weights_are_normed),
        ('torch', norms_have_one_base),
        ('timm', attention_is_timms),
        ('torchgeo', tasks_are_modules),
        ('torchvision', weights_are_enums),
        ('segmentation-models-pytorch', decoders_are_classes),
        ('rasterio', errors_of_gdal_are_exceptions),
    ],
)
def test_what_is_not_promised_is_where_it_was(
    package: str, check: Callable[[Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('SLURM_JOB_NAME', 'test')
    try:
        held = check(tmp_path)
    except Exception as error:
        said, held = f' ({type(error).__name__}: {error})', False
    else:
        said = ''
    assert held, (
        f'{package} {metadata.version(package)} has moved what explora_geo/_compat.py takes from it: no '
        f'longer {check.__name__.replace("_", " ")}{said}; mend it there, or stay below this version'
    )


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = _compat.nothing


def private(tree: ast.AST) -> set[str]:
    """Names of others that begin with an underscore, as imports and attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            parts = [*node.module.split('.'), *(alias.name for alias in node.names)]
            if parts[0] in FOREIGN and any(p[0] == '_' for p in parts):
                found.add(node.module)
        elif isinstance(node, ast.Attribute) and node.attr[0] == '_' and node.attr[1] != '_':
            owner = node.value
            name = getattr(owner, 'attr', getattr(owner, 'id', ''))
            if name in FOREIGN | HELD:
                found.add(f'{name}.{node.attr}')
    return found


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_are_taken_in_one_place(path: Path) -> None:
    found = private(ast.parse(path.read_text()))
    assert bool(found) == (path.name == '_compat.py'), found
