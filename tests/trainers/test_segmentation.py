"""SegmentationTask: losses, ignored pixels, metrics, learning from real masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.datamodules import MaskFolderDataModule
from explora_geo.trainers import OptimConfig, Regularization, SegmentationTask, load_task


@pytest.fixture
def build(base_file: Path) -> Callable[..., SegmentationTask]:
    """Build a small task with the cheapest head."""

    def call(**kwargs: Any) -> SegmentationTask:
        defaults: dict[str, Any] = {
            'model': 'vit_tiny_patch8_32',
            'weights': str(base_file),
            'head': 'linear',
        }
        return SegmentationTask(**{**defaults, **kwargs})

    return call


def test_ignored_pixels_count_neither_in_the_loss_nor_in_metrics(
    build: Callable[..., SegmentationTask],
) -> None:
    scores = torch.randn(2, 3, 8, 8)
    target = torch.randint(3, (2, 8, 8))
    holed = target.clone()
    holed[:, :4] = 255
    for loss in ('ce', 'focal', 'dice'):
        task = build(num_classes=3, ignore_index=255, loss=loss)
        changed = scores.clone()
        changed[:, :, :4] = torch.randn(2, 3, 4, 8)
        assert_close(task.loss(scores, holed), task.loss(changed, holed))
        scores.requires_grad_(True)
        nothing = task.loss(scores, torch.full_like(target, 255))
        assert nothing == 0 and nothing.requires_grad  # a batch beside the scene stops no run
        scores.requires_grad_(False)
    task = build(num_classes=3, ignore_index=255)
    assert_close(task.loss(scores, holed), F.cross_entropy(scores[:, :, 4:], target[:, 4:]))
    task.val_metrics.update(task.predict(scores), holed)
    values = task.val_metrics.compute()
    hits = scores.argmax(1)[:, 4:] == target[:, 4:]
    assert_close(values['val_OverallAccuracy'], hits.float().mean())
    found, truth = scores.argmax(1)[:, 4:], target[:, 4:]
    iou = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(3)]
    assert_close(values['val_JaccardIndex'], torch.stack(iou).mean())


def test_binary_masks_have_one_score(build: Callable[..., SegmentationTask]) -> None:
    task = build(task='binary', ignore_index=255)
    scores, target = torch.randn(2, 1, 8, 8), torch.randint(2, (2, 8, 8))
    holed = target.clone()
    holed[0] = 255
    expected = F.binary_cross_entropy_with_logits(scores[1:, 0], target[1:].float())
    assert_close(task.loss(scores, holed), expected)
    assert torch.equal(task.decide(task.predict(scores)), (scores[:, 0] > 0).long())
    for loss in ('dice', 'focal'):
        good = 9 * (2.0 * target[:, None] - 1)
        assert build(task='binary', loss=loss).loss(good, target) < 0.05
    assert build(task='binary', loss='jaccard').loss(good, target) < 0.05


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


@pytest.mark.parametrize(
    ('kwargs', 'sentence'),
    [
        ({}, 'needs num_classes of at least 2, got None'),
        ({'task': 'multilabel'}, 'task must be binary or multiclass'),
        ({'num_classes': 2, 'loss': 'bce'}, 'the loss bce does not fit the task multiclass'),
        ({'num_classes': 2, 'loss': 'mse'}, 'loss must be ce, bce, jaccard, focal or dice'),
        ({'num_classes': 2, 'loss': 'jaccard', 'ignore_index': 0}, 'use dice with ignore_index'),
        ({'num_classes': 2, 'head': 'unet'}, 'head must be one of linear'),
        ({'num_classes': 2, 'class_weights': [1.0]}, 'class_weights must have 2 values'),
        ({'num_classes': 2, 'regularization': Regularization(erasing=0.5)}, 'not for masks'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    build: Callable[..., SegmentationTask], kwargs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**kwargs)


def test_masks_that_do_not_fit_are_named(build: Callable[..., SegmentationTask]) -> None:
    task, image = build(num_classes=3), torch.zeros(2, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r'masks of shape \(2, 16, 16\) for images of shape \(2, 3, 32, 32\)'
    ):
        task.check_target(torch.zeros(2, 16, 16), image)
    mask = torch.zeros(2, 32, 32).long()
    mask[0, 0, 0] = 7
    with pytest.raises(
        ValueError, match='masks must be 0 to 2, got 0 to 7: correct num_classes, or give ignore_index'
    ):
        task.check_target(mask, image)
    build(num_classes=3, ignore_index=7).check_target(mask, image)
