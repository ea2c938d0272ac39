"""Models of any kind as functions from tiles to maps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from explora_geo.maps.model import open_model
from explora_geo.trainers import ClassificationTask, RegressionTask, SegmentationTask, save_task

Save = Callable[..., Path]


@pytest.fixture
def save(small_names: None, tmp_path: Path) -> Save:
    """Save a model that was not trained."""

    def call(kind: Any, data: dict[str, Any] | None = None, **kwargs: Any) -> Path:
        task = kind(model='vit_tiny_patch8_32', tuning='full', **kwargs)
        task.data = data or {}
        save_task(tmp_path / 'm.safetensors', task.eval())
        return tmp_path / 'm.safetensors'

    return call


def test_binary_models_have_two_classes(save: Save) -> None:
    model = open_model(
        save(SegmentationTask, {'classes': ['ground', 'building']}, task='binary', head='linear')
    )
    assert model.classes == ('ground', 'building') and model.function is not None
    found = model.function(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, 2, 32, 32)
    assert_close(found.sum(1), torch.ones(2, 32, 32))


def test_a_model_of_whole_images_gives_every_pixel_its_tiles_prediction(save: Save) -> None:
    model = open_model(save(ClassificationTask, num_classes=4))
    assert model.classes == ('class 0', 'class 1', 'class 2', 'class 3') and len(set(model.colors)) == 4
    assert model.function is not None
    found = model.function(torch.randn(2, 3, 32, 32))
    assert found.shape == (2, 4, 32, 32)
    assert_close(found, found[:, :, :1, :1].expand_as(found))


@pytest.mark.parametrize('target', ['label', 'mask'])
def test_numbers_have_no_classes(save: Save, target: str) -> None:
    model = open_model(save(RegressionTask, target=target))
    assert model.classes == () and model.function is not None
    assert model.function(torch.randn(2, 3, 32, 32)).shape == (2, 1, 32, 32)


def test_several_labels_have_no_map(save: Save) -> None:
    with pytest.raises(ValueError, match='several labels at once'):
        open_model(save(ClassificationTask, task='multilabel', num_labels=3))
