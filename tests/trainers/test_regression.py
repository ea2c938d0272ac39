"""RegressionTask: images and pixels, missing measurements."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.trainers import RegressionTask, Regularisation


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


@pytest.mark.parametrize(
    ('kwargs', 'sentence'),
    [
        ({'loss': 'huber'}, 'loss must be mse or mae'),
        ({'target': 'image'}, 'target must be label or mask'),
        ({'num_outputs': 2, 'target': 'mask'}, '1 for masks, got 2'),
        ({'regularisation': Regularisation(mixup=1.0)}, 'mixup and cutmix are for classes'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    build: Callable[..., RegressionTask], kwargs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**kwargs)


def test_targets_that_do_not_fit_are_named(build: Callable[..., RegressionTask]) -> None:
    image = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r'shape \(2, 1\), got \(2, 3\)'):
        build().check_target(torch.zeros(2, 3), image)
    with pytest.raises(ValueError, match='infinite values'):
        build().check_target(torch.tensor([1.0, torch.inf]), image)
