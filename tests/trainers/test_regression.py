"""RegressionTask: images and pixels, missing measurements."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader

from explora_geo.trainers import RegressionTask, Regularization


@pytest.fixture
def build(base_file: Path) -> Callable[..., RegressionTask]:
    """Build a small task."""

    def call(**kwargs: Any) -> RegressionTask:
        return RegressionTask(model='vit_tiny_patch8_32', weights=str(base_file), **kwargs)

    return call


@pytest.mark.parametrize(
    ('kwargs', 'shape'),
    [
        ({}, (4,)),
        ({'num_outputs': 2}, (4, 2)),
        ({'target': 'mask', 'head': 'upernet', 'head_channels': 8}, (4, 32, 32)),
    ],
)
@pytest.mark.parametrize('loss', ['mse', 'mae'])
def test_missing_measurements_are_left_out(
    build: Callable[..., RegressionTask], kwargs: dict[str, Any], shape: tuple[int, ...], loss: str
) -> None:
    task = build(loss=loss, **kwargs)
    image = torch.randn(4, 3, 32, 32)
    scores = task(image)
    assert task.predict(scores).shape == shape
    target = torch.randn(shape)
    target[0] = torch.nan
    task.check_target(target, image)
    function = F.mse_loss if loss == 'mse' else F.l1_loss
    assert_close(task.loss(scores, target), function(task.predict(scores)[1:], target[1:]))
    assert task.loss(scores, torch.full(shape, torch.nan)) == 0


def test_metrics_are_torchgeos_and_the_coefficient_of_determination(
    build: Callable[..., RegressionTask],
) -> None:
    task = build()
    found, target = torch.randn(50), torch.randn(50)
    task.val_metrics.update(found, target)
    values = task.val_metrics.compute()
    mse = (found - target).square().mean()
    assert_close(values['val_MSE'], mse)
    assert_close(values['val_RMSE'], mse.sqrt())
    assert_close(values['val_R2Score'], 1 - mse / target.var(unbiased=False))


def test_every_measured_target_counts_whatever_the_batch(build: Callable[..., RegressionTask]) -> None:
    task = build()
    found, target = torch.randn(5), torch.randn(5)
    for part in (slice(0, 4), slice(4, 5)):
        task.val_metrics.update(found[part], target[part])
    assert_close(task.val_metrics.compute()['val_MAE'], (found - target).abs().mean())
    task.val_metrics.reset()
    task.val_metrics.update(found[:1], target[:1])
    values = task.val_metrics.compute()
    assert torch.isnan(values['val_R2Score']) and torch.isfinite(values['val_MAE'])


@pytest.mark.parametrize('batch_size', [4, 1])
def test_a_last_batch_of_one_image_is_tested(
    build: Callable[..., RegressionTask], tmp_path: Path, batch_size: int
) -> None:
    samples = [{'image': torch.randn(3, 32, 32), 'label': torch.tensor(100.0 * (i == 4))} for i in range(5)]
    loader: Any = DataLoader(samples, batch_size=batch_size)  # type: ignore[arg-type]
    quiet: dict[str, Any] = {'logger': False, 'enable_progress_bar': False, 'enable_checkpointing': False}
    trainer = Trainer(accelerator='cpu', default_root_dir=tmp_path, **quiet)
    task = build()
    (scores,) = trainer.test(task, loader, verbose=False)
    found = torch.cat([task.eval()(s['image'][None]) for s in samples]).squeeze(1)
    wanted = torch.stack([s['label'] for s in samples])
    assert scores['test_MAE'] == pytest.approx((found - wanted).abs().mean().item(), rel=1e-4)


def test_targets_keep_their_digits_in_half_precision(build: Callable[..., RegressionTask]) -> None:
    target = torch.tensor([1001.9, 70_000.0])
    for dtype in (torch.bfloat16, torch.float16):
        found = torch.tensor([[1000.0], [60_000.0]], dtype=dtype)
        expected = F.mse_loss(found.squeeze(1).float(), target)
        assert_close(build().loss(found, target), expected)


@pytest.mark.parametrize(
    ('kwargs', 'sentence'),
    [
        ({'loss': 'huber'}, 'loss must be mse or mae'),
        ({'target': 'image'}, 'target must be label or mask'),
        ({'num_outputs': 2, 'target': 'mask'}, '1 for masks, got 2'),
        ({'regularization': Regularization(mixup=1.0)}, 'mixup and cutmix are for classes'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    build: Callable[..., RegressionTask], kwargs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**kwargs)


def test_targets_that_do_not_fit_are_named(build: Callable[..., RegressionTask]) -> None:
    image = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r'must have shape \(2, 1\), got labels of shape \(2, 3\)'):
        build().check_target(torch.zeros(2, 3), image)
    with pytest.raises(ValueError, match='infinite values'):
        build().check_target(torch.tensor([1.0, torch.inf]), image)
