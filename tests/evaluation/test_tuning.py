"""Tuning on few labels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from explora_geo.adaptation import explora, trainable_summary
from explora_geo.evaluation import tune_few_labels
from explora_geo.evaluation.tuning import LORA_R8
from explora_geo.models import ViT

Build = Callable[..., ViT]


@pytest.fixture
def brightness() -> Callable[[int], tuple[Tensor, Tensor]]:
    """Images whose class is the sign of their mean."""

    def build(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % 2
        return torch.randn(count, 3, 32, 32) + (2.0 * labels - 1)[:, None, None, None], labels

    return build


def tune(vit: ViT, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int = 0) -> float:
    return tune_few_labels(vit, *train, *test, seed=seed, epochs=4, batch_size=8)


def test_an_easy_task_is_learnt(build_vit: Build, brightness: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    assert tune(build_vit(), brightness(32), brightness(40)) > 0.95


def test_the_backbone_given_is_not_changed(
    build_vit: Build, brightness: Callable[[int], tuple[Tensor, Tensor]]
) -> None:
    vit = build_vit()
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    tune(vit, brightness(8), brightness(4))
    after = vit.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())
    assert all(p.requires_grad for p in vit.parameters())


def test_a_seed_gives_one_result_and_leaves_the_random_state(
    build_vit: Build, brightness: Callable[[int], tuple[Tensor, Tensor]]
) -> None:
    vit, train = build_vit(), brightness(24)
    test = torch.randn(60, 3, 32, 32), torch.arange(60) % 2
    state = torch.random.get_rng_state()
    first, again = (tune(vit, train, test, seed=3) for _ in range(2))
    assert first == again
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize('count', [2, 7, 9, 17])
def test_any_number_of_images_makes_batches(
    build_vit: Build, brightness: Callable[[int], tuple[Tensor, Tensor]], count: int
) -> None:
    train = brightness(count)
    assert 0 <= tune(build_vit(), train, brightness(4)) <= 1


def test_only_lora_r8_on_q_and_v_of_every_block_trains(build_vit: Build) -> None:
    vit = explora(build_vit(), LORA_R8)
    assert trainable_summary(vit) == {'LoRA': 3 * 4 * 32 * 8}
