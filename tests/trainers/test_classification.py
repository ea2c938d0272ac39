"""ClassificationTask: losses, metrics, targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.trainers import ClassificationTask, Regularization, load_task, save_task


@pytest.fixture
def build(base_file: Path) -> Callable[..., ClassificationTask]:
    """Build a small task."""

    def call(**kwargs: Any) -> ClassificationTask:
        return ClassificationTask(model='vit_tiny_patch8_32', weights=str(base_file), **kwargs)

    return call


def test_multiclass_is_scored_as_torch_and_torchgeo_do(build: Callable[..., ClassificationTask]) -> None:
    weights = [1.0, 2.0, 3.0]
    task = build(num_classes=3, class_weights=weights, regularization=Regularization(label_smoothing=0.1))
    scores, target = torch.randn(20, 3), torch.arange(20) % 3
    expected = F.cross_entropy(scores, target, torch.tensor(weights), label_smoothing=0.1)
    assert_close(task.loss(scores, target), expected)
    task.val_metrics.update(task.predict(scores), target)
    values = task.val_metrics.compute()
    hits = scores.argmax(1) == target
    assert_close(values['val_OverallAccuracy'], hits.float().mean())
    per_class = torch.stack([hits[target == c].float().mean() for c in range(3)]).mean()
    assert_close(values['val_AverageAccuracy'], per_class)
    assert torch.equal(task.decide(task.predict(scores)), scores.argmax(1))
    assert set(values) == {
        f'val_{m}'
        for m in ('OverallAccuracy', 'AverageAccuracy', 'JaccardIndex', 'F1Score', 'AverageF1Score')
    }


def test_multilabel_and_binary_use_a_sigmoid(build: Callable[..., ClassificationTask]) -> None:
    task = build(task='multilabel', num_labels=4)
    scores, target = torch.randn(6, 4), torch.randint(2, (6, 4))
    assert_close(task.loss(scores, target), F.binary_cross_entropy_with_logits(scores, target.float()))
    task.val_metrics.update(task.predict(scores), target)
    assert 'val_AveragePrecision' in task.val_metrics.compute()
    assert torch.equal(task.decide(task.predict(scores)), (scores > 0).long())
    binary = build(task='binary')
    scores, target = torch.randn(6, 1), torch.randint(2, (6,))
    assert_close(
        binary.loss(scores, target), F.binary_cross_entropy_with_logits(scores[:, 0], target.float())
    )
    assert binary.predict(scores).shape == (6,)


@pytest.mark.parametrize('loss', ['jaccard', 'focal'])
@pytest.mark.parametrize('kind', [{'num_classes': 3}, {'task': 'multilabel', 'num_labels': 3}])
def test_other_losses_fall_with_better_scores(
    build: Callable[..., ClassificationTask], loss: str, kind: dict[str, Any]
) -> None:
    task = build(loss=loss, **kind)
    target = torch.eye(3).long() if 'task' in kind else torch.arange(3)
    good = 5 * (2 * torch.eye(3) - 1)
    assert task.loss(good, target) < 0.3 < task.loss(-good, target)


def test_training_on_mixed_images_uses_shares(build: Callable[..., ClassificationTask]) -> None:
    task = build(num_classes=3, regularization=Regularization(mixup=1.0))
    _, shares = task.regularization.apply(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), 3)
    scores = torch.randn(4, 3)
    assert shares.shape == (4, 3)
    assert_close(task.loss(scores, shares), -(shares * scores.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize(
    ('kwargs', 'sentence'),
    [
        ({}, 'needs num_classes of at least 2, got None'),
        ({'num_classes': 1}, 'needs num_classes of at least 2, got 1'),
        ({'task': 'multilabel'}, 'needs num_labels of at least 1, got None'),
        ({'task': 'several', 'num_classes': 2}, 'task must be one of multiclass, multilabel, binary'),
        ({'num_classes': 2, 'loss': 'bce'}, 'the loss bce does not fit the task multiclass'),
        ({'num_classes': 2, 'loss': 'mse'}, 'loss must be ce, bce, jaccard or focal'),
        ({'num_classes': 2, 'class_weights': [1.0]}, 'class_weights must have 2 values, got 1'),
        (
            {'task': 'multilabel', 'num_labels': 2, 'regularization': Regularization(cutmix=1.0)},
            'need one class per image',
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    build: Callable[..., ClassificationTask], kwargs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**kwargs)


def test_labels_out_of_range_are_named(build: Callable[..., ClassificationTask]) -> None:
    task, image = build(num_classes=3), torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match='labels must be 0 to 2, got 1 to 3'):
        task.check_target(torch.tensor([1, 3]), image)
    with pytest.raises(ValueError, match=r'must have shape \(2,\), got labels of shape \(2, 3\)'):
        task.check_target(torch.zeros(2, 3), image)


@pytest.mark.parametrize('kind', [torch.tensor, np.array])
def test_weights_of_classes_may_be_any_array(
    build: Callable[..., ClassificationTask], kind: Callable[..., Any], tmp_path: Path
) -> None:
    task = build(num_classes=3, class_weights=kind([1.0, 2.0, 3.0]))
    same = build(num_classes=3, class_weights=[1.0, 2.0, 3.0])
    scores, target = torch.randn(20, 3), torch.arange(20) % 3
    assert_close(task.loss(scores, target), same.loss(scores, target))
    assert task.hparams['class_weights'] == [1.0, 2.0, 3.0]
    save_task(tmp_path / 'model.safetensors', task)
    assert load_task(tmp_path / 'model.safetensors').outputs == 3


def test_a_batch_of_one_image_is_scaled_as_the_batches_before(
    build: Callable[..., ClassificationTask], images: torch.Tensor
) -> None:
    task = build(num_classes=3).train()
    task.model.backbone.eval()  # no path is dropped
    task(images)
    norm = task.model.norm
    before = norm.running_mean.clone()
    assert torch.isfinite(task(images[:1])).all() and torch.equal(norm.running_mean, before)
    assert_close(task(images[:1]), task.eval()(images[:1]))
