"""The tasks with labels: losses, metrics, targets, learning from real masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader

from explora_geo.datamodules import MaskFolderDataModule
from explora_geo.trainers import (
    ClassificationTask,
    OptimConfig,
    RegressionTask,
    Regularization,
    SegmentationTask,
    load_task,
    save_task,
)

Build = Callable[..., Any]


@pytest.fixture
def build(base_file: Path) -> Build:
    """Build a small task of a kind, by default with the cheapest head."""

    def call(kind: Callable[..., Any], **kwargs: Any) -> Any:
        head = {'head': 'linear'} if kind is SegmentationTask else {}
        return kind(**{'model': 'vit_tiny_patch8_32', 'weights': str(base_file), **head, **kwargs})

    return call


@pytest.mark.parametrize(
    ('kind', 'kwargs', 'sentence'),
    [
        (ClassificationTask, {}, 'num_classes must be at least 2 for task multiclass, got None'),
        (ClassificationTask, {'num_classes': 1}, 'num_classes must be at least 2 for task multiclass, got 1'),
        (
            ClassificationTask,
            {'task': 'multilabel'},
            'num_labels must be at least 1 for task multilabel, got None',
        ),
        (
            ClassificationTask,
            {'task': 'several', 'num_classes': 2},
            'task must be one of multiclass, multilabel, binary',
        ),
        (ClassificationTask, {'num_classes': 2, 'loss': 'bce'}, 'loss bce does not match task multiclass'),
        (ClassificationTask, {'num_classes': 2, 'loss': 'mse'}, 'loss must be ce, bce, jaccard or focal'),
        (
            ClassificationTask,
            {'num_classes': 2, 'class_weights': [1.0]},
            'class_weights must have 2 values, got 1',
        ),
        (
            ClassificationTask,
            {'task': 'multilabel', 'num_labels': 2, 'regularization': Regularization(cutmix=1.0)},
            'need one class per image',
        ),
        (SegmentationTask, {}, 'num_classes must be at least 2 for task multiclass, got None'),
        (SegmentationTask, {'task': 'multilabel'}, 'task must be binary or multiclass'),
        (SegmentationTask, {'num_classes': 2, 'loss': 'bce'}, 'loss bce does not match task multiclass'),
        (SegmentationTask, {'num_classes': 2, 'loss': 'mse'}, 'loss must be ce, bce, jaccard, focal or dice'),
        (
            SegmentationTask,
            {'num_classes': 2, 'loss': 'jaccard', 'ignore_index': 0},
            'loss jaccard does not support ignore_index: use loss dice',
        ),
        (SegmentationTask, {'num_classes': 2, 'head': 'unet'}, 'head must be one of linear'),
        (SegmentationTask, {'num_classes': 2, 'class_weights': [1.0]}, 'class_weights must have 2 values'),
        (
            SegmentationTask,
            {'num_classes': 2, 'regularization': Regularization(erasing=0.5)},
            'erasing supports only image labels, not masks',
        ),
        (RegressionTask, {'loss': 'huber'}, 'loss must be mse or mae'),
        (RegressionTask, {'target': 'image'}, 'target must be label or mask'),
        (RegressionTask, {'num_outputs': 2, 'target': 'mask'}, '1 for masks, got 2'),
        (
            RegressionTask,
            {'regularization': Regularization(mixup=1.0)},
            'mixup and cutmix support only classes',
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    build: Build, kind: Any, kwargs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(kind, **kwargs)


def test_multiclass_is_scored_as_torch_and_torchgeo_do(build: Build) -> None:
    weights = [1.0, 2.0, 3.0]
    task = build(
        ClassificationTask,
        num_classes=3,
        class_weights=weights,
        regularization=Regularization(label_smoothing=0.1),
    )
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


def test_multilabel_and_binary_use_a_sigmoid(build: Build) -> None:
    task = build(ClassificationTask, task='multilabel', num_labels=4)
    scores, target = torch.randn(6, 4), torch.randint(2, (6, 4))
    assert_close(task.loss(scores, target), F.binary_cross_entropy_with_logits(scores, target.float()))
    task.val_metrics.update(task.predict(scores), target)
    assert 'val_AveragePrecision' in task.val_metrics.compute()
    assert torch.equal(task.decide(task.predict(scores)), (scores > 0).long())
    binary = build(ClassificationTask, task='binary')
    scores, target = torch.randn(6, 1), torch.randint(2, (6,))
    assert_close(
        binary.loss(scores, target), F.binary_cross_entropy_with_logits(scores[:, 0], target.float())
    )
    assert binary.predict(scores).shape == (6,)


@pytest.mark.parametrize('loss', ['jaccard', 'focal'])
@pytest.mark.parametrize('kind', [{'num_classes': 3}, {'task': 'multilabel', 'num_labels': 3}])
def test_other_losses_fall_with_better_scores(build: Build, loss: str, kind: dict[str, Any]) -> None:
    task = build(ClassificationTask, loss=loss, **kind)
    target = torch.eye(3).long() if 'task' in kind else torch.arange(3)
    good = 5 * (2 * torch.eye(3) - 1)
    assert task.loss(good, target) < 0.3 < task.loss(-good, target)


def test_training_on_mixed_images_uses_shares(build: Build) -> None:
    task = build(ClassificationTask, num_classes=3, regularization=Regularization(mixup=1.0))
    _, shares = task.regularization.apply(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), 3)
    scores = torch.randn(4, 3)
    assert shares.shape == (4, 3)
    assert_close(task.loss(scores, shares), -(shares * scores.log_softmax(1)).sum(1).mean())


def test_labels_out_of_range_are_named(build: Build) -> None:
    task, image = build(ClassificationTask, num_classes=3), torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match='labels must be between 0 and 2, got 1 to 3'):
        task.check_target(torch.tensor([1, 3]), image)
    with pytest.raises(ValueError, match=r'must have shape \(2,\), got labels of shape \(2, 3\)'):
        task.check_target(torch.zeros(2, 3), image)


@pytest.mark.parametrize('kind', [torch.tensor, np.array])
def test_weights_of_classes_may_be_any_array(build: Build, kind: Callable[..., Any], tmp_path: Path) -> None:
    task = build(ClassificationTask, num_classes=3, class_weights=kind([1.0, 2.0, 3.0]))
    same = build(ClassificationTask, num_classes=3, class_weights=[1.0, 2.0, 3.0])
    scores, target = torch.randn(20, 3), torch.arange(20) % 3
    assert_close(task.loss(scores, target), same.loss(scores, target))
    assert task.hparams['class_weights'] == [1.0, 2.0, 3.0]
    save_task(tmp_path / 'model.safetensors', task)
    assert load_task(tmp_path / 'model.safetensors').outputs == 3


def test_a_batch_of_one_image_is_scaled_as_the_batches_before(build: Build, images: torch.Tensor) -> None:
    task = build(ClassificationTask, num_classes=3).train()
    task.model.backbone.eval()  # no path is dropped
    task(images)
    norm = task.model.norm
    before = norm.running_mean.clone()
    assert torch.isfinite(task(images[:1])).all() and torch.equal(norm.running_mean, before)
    assert_close(task(images[:1]), task.eval()(images[:1]))


def test_ignored_pixels_count_neither_in_the_loss_nor_in_metrics(build: Build) -> None:
    scores = torch.randn(2, 3, 8, 8)
    target = torch.randint(3, (2, 8, 8))
    holed = target.clone()
    holed[:, :4] = 255
    for loss in ('ce', 'focal', 'dice'):
        task = build(SegmentationTask, num_classes=3, ignore_index=255, loss=loss)
        changed = scores.clone()
        changed[:, :, :4] = torch.randn(2, 3, 4, 8)
        assert_close(task.loss(scores, holed), task.loss(changed, holed))
        scores.requires_grad_(True)
        nothing = task.loss(scores, torch.full_like(target, 255))
        assert nothing == 0 and nothing.requires_grad  # a batch beside the scene stops no run
        scores.requires_grad_(False)
    task = build(SegmentationTask, num_classes=3, ignore_index=255)
    assert_close(task.loss(scores, holed), F.cross_entropy(scores[:, :, 4:], target[:, 4:]))
    task.val_metrics.update(task.predict(scores), holed)
    values = task.val_metrics.compute()
    hits = scores.argmax(1)[:, 4:] == target[:, 4:]
    assert_close(values['val_OverallAccuracy'], hits.float().mean())
    found, truth = scores.argmax(1)[:, 4:], target[:, 4:]
    iou = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(3)]
    assert_close(values['val_JaccardIndex'], torch.stack(iou).mean())


def test_binary_masks_have_one_score(build: Build) -> None:
    task = build(SegmentationTask, task='binary', ignore_index=255)
    scores, target = torch.randn(2, 1, 8, 8), torch.randint(2, (2, 8, 8))
    holed = target.clone()
    holed[0] = 255
    expected = F.binary_cross_entropy_with_logits(scores[1:, 0], target[1:].float())
    assert_close(task.loss(scores, holed), expected)
    assert torch.equal(task.decide(task.predict(scores)), (scores[:, 0] > 0).long())
    for loss in ('dice', 'focal'):
        good = 9 * (2.0 * target[:, None] - 1)
        assert build(SegmentationTask, task='binary', loss=loss).loss(good, target) < 0.05
    assert build(SegmentationTask, task='binary', loss='jaccard').loss(good, target) < 0.05


@pytest.mark.slow
def test_vegetation_is_learnt_from_real_windows(
    base_file: Path, masks: Path, build_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = MaskFolderDataModule(
        masks,
        val_root=masks,
        test_root=masks,
        image_size=32,
        batch_size=4,
        classes=['other', 'vegetation'],
        cache=True,
    )
    task = SegmentationTask(
        model='vit_tiny_patch8_32',
        weights=str(base_file),
        tuning='full',
        num_classes=2,
        head='upernet',
        head_channels=16,
        optim=OptimConfig(base_lr=3e-3, lr_scaling='none', warmup_fraction=0.1),
        regularization=Regularization(drop_path=0),
    )
    trainer = build_trainer(max_epochs=12)
    trainer.fit(task, datamodule=data)
    score = trainer.test(task, datamodule=data, verbose=False)[0]
    truth = torch.stack([data.test_dataset[i]['mask'] for i in range(12)]).float().mean()
    assert score['test_OverallAccuracy'] > max(truth, 1 - truth) + 0.02
    predicted = trainer.predict(task, datamodule=data)
    assert torch.cat(predicted).shape == (12, 2, 32, 32)  # type: ignore[arg-type]
    loaded = load_task(tmp_path / 'run' / 'model.safetensors')
    assert loaded.data['classes'] == ['other', 'vegetation']
    assert list((tmp_path / 'run' / 'pictures').glob('*.png'))


def test_masks_that_do_not_fit_are_named(build: Build) -> None:
    task, image = build(SegmentationTask, num_classes=3), torch.zeros(2, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r'masks of shape \(2, 16, 16\) for images of shape \(2, 3, 32, 32\)'
    ):
        task.check_target(torch.zeros(2, 16, 16), image)
    mask = torch.zeros(2, 32, 32).long()
    mask[0, 0, 0] = 7
    sentence = 'masks must be between 0 and 2, got 0 to 7: correct num_classes, or set ignore_index'
    with pytest.raises(ValueError, match=sentence):
        task.check_target(mask, image)
    build(SegmentationTask, num_classes=3, ignore_index=7).check_target(mask, image)


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
    build: Build, kwargs: dict[str, Any], shape: tuple[int, ...], loss: str
) -> None:
    task = build(RegressionTask, loss=loss, **kwargs)
    image = torch.randn(4, 3, 32, 32)
    scores = task(image)
    assert task.predict(scores).shape == shape
    target = torch.randn(shape)
    target[0] = torch.nan
    task.check_target(target, image)
    function = F.mse_loss if loss == 'mse' else F.l1_loss
    assert_close(task.loss(scores, target), function(task.predict(scores)[1:], target[1:]))
    assert task.loss(scores, torch.full(shape, torch.nan)) == 0


def test_metrics_are_torchgeos_and_the_coefficient_of_determination(build: Build) -> None:
    task = build(RegressionTask)
    found, target = torch.randn(50), torch.randn(50)
    task.val_metrics.update(found, target)
    values = task.val_metrics.compute()
    mse = (found - target).square().mean()
    assert_close(values['val_MSE'], mse)
    assert_close(values['val_RMSE'], mse.sqrt())
    assert_close(values['val_R2Score'], 1 - mse / target.var(unbiased=False))


def test_every_measured_target_counts_whatever_the_batch(build: Build) -> None:
    task = build(RegressionTask)
    found, target = torch.randn(5), torch.randn(5)
    for part in (slice(0, 4), slice(4, 5)):
        task.val_metrics.update(found[part], target[part])
    assert_close(task.val_metrics.compute()['val_MAE'], (found - target).abs().mean())
    task.val_metrics.reset()
    task.val_metrics.update(found[:1], target[:1])
    values = task.val_metrics.compute()
    assert torch.isnan(values['val_R2Score']) and torch.isfinite(values['val_MAE'])


@pytest.mark.parametrize('batch_size', [4, 1])
def test_a_last_batch_of_one_image_is_tested(build: Build, tmp_path: Path, batch_size: int) -> None:
    samples = [{'image': torch.randn(3, 32, 32), 'label': torch.tensor(100.0 * (i == 4))} for i in range(5)]
    loader: Any = DataLoader(samples, batch_size=batch_size)  # type: ignore[arg-type]
    quiet: dict[str, Any] = {'logger': False, 'enable_progress_bar': False, 'enable_checkpointing': False}
    trainer = Trainer(accelerator='cpu', default_root_dir=tmp_path, **quiet)
    task = build(RegressionTask)
    (scores,) = trainer.test(task, loader, verbose=False)
    found = torch.cat([task.eval()(s['image'][None]) for s in samples]).squeeze(1)
    wanted = torch.stack([s['label'] for s in samples])
    assert scores['test_MAE'] == pytest.approx((found - wanted).abs().mean().item(), rel=1e-4)


def test_targets_keep_their_digits_in_half_precision(build: Build) -> None:
    target = torch.tensor([1001.9, 70_000.0])
    for dtype in (torch.bfloat16, torch.float16):
        found = torch.tensor([[1000.0], [60_000.0]], dtype=dtype)
        expected = F.mse_loss(found.squeeze(1).float(), target)
        assert_close(build(RegressionTask).loss(found, target), expected)


def test_targets_that_do_not_fit_are_named(build: Build) -> None:
    image = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r'must have shape \(2, 1\), got labels of shape \(2, 3\)'):
        build(RegressionTask).check_target(torch.zeros(2, 3), image)
    with pytest.raises(ValueError, match='infinite values'):
        build(RegressionTask).check_target(torch.tensor([1.0, torch.inf]), image)
