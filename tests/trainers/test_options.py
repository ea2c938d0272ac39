"""What trains, and how tuning is regularised."""

import pytest
import torch
from torch.testing import assert_close

from explora_geo.adaptation import explora, trainable_summary
from explora_geo.models import create_vit
from explora_geo.trainers import Regularization
from explora_geo.trainers.options import ADAPTATIONS, OPTIMIZERS


def test_lora_trains_what_the_paper_counts() -> None:
    with torch.device('meta'):
        counts = {}
        for name, config in ADAPTATIONS.items():
            counts[name] = trainable_summary(explora(create_vit('vit_large_patch16_224'), config))
    assert counts['linear'] == {}
    assert counts['lora'] == {'LoRA': 786_432}
    assert sum(counts['explora'].values()) == 15_708_160
    assert sum(counts['full'].values()) == 303_301_632


def test_the_published_numbers_are_the_defaults() -> None:
    lora, full = OPTIMIZERS['lora'], OPTIMIZERS['full']
    assert (lora.scaled_lr(256), lora.min_lr, lora.layer_decay) == (1e-3, 1e-6, 1.0)
    assert lora.warmup_length == full.warmup_length == ('warmup_epochs', 1)
    assert (full.scaled_lr(256), full.layer_decay) == (2e-4, 0.75)
    assert Regularization() == Regularization(drop_path=0.2, mixup=0, cutmix=0, erasing=0)


def test_mixed_images_and_classes_have_the_same_shares() -> None:
    label = torch.arange(4)
    image = label.float().view(4, 1, 1, 1).expand(4, 3, 16, 16).contiguous()
    for setting in (Regularization(mixup=1.0), Regularization(cutmix=1.0)):
        mixed, shares = setting.apply(image, label, 4)
        assert_close(shares.sum(1), torch.ones(4))
        assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(4.0))
        assert not torch.equal(mixed, image)


def test_series_are_mixed_and_erased_as_a_whole() -> None:
    series = torch.randn(4, 2, 3, 16, 16)
    mixed, _ = Regularization(cutmix=1.0).apply(series, torch.arange(4), 4)
    assert mixed.shape == series.shape
    erased, _ = Regularization(erasing=1.0).apply(series, torch.arange(4), 4)
    gone = (erased == 0).flatten(1, 2)
    assert gone.any((1, 2, 3)).all() and torch.equal(gone.all(1), gone.any(1))
    assert Regularization().apply(series, torch.arange(4), 4)[0] is series


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'drop_path': 1.0}, r'drop_path must be in \[0, 1\), got 1'),
        ({'mixup': -1.0}, 'mixup must not be negative, got -1'),
        ({'erasing': 1.5}, r'erasing must be in \[0, 1\], got 1.5'),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Regularization(**changes)
