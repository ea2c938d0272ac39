"""Before and after: known cases on real tiles."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.datamodules.archive import LabeledTiles, look
from explora_geo.evaluation.comparison import (
    METHODS,
    Comparison,
    Measured,
    PairProtocol,
    interpolate,
    score_pair,
)
from explora_geo.models import ViT

TILES = Path(__file__).parents[1] / 'data' / 'eurosat_rgb' / 'test'
QUICK = PairProtocol(draws=2, resamples=200, penalties=(0.1,), turns=1)


class Noise(nn.Module):
    """Features that know nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Draw them."""
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x)))


@pytest.fixture(scope='module')
def batches() -> list[dict[str, Tensor]]:
    """Three hundred real tiles of ten classes, 32 px."""
    archive = look(TILES, patch_size=8, image_size=32)
    datamodule = archive.datamodule()
    datamodule.setup('fit')
    return list(LabeledTiles(TILES, archive, limit=300).batches(datamodule, 100))


@pytest.fixture
def vit(build_vit: Callable[..., ViT]) -> ViT:
    torch.manual_seed(0)
    return build_vit(width=48)


@pytest.fixture
def noise(vit: ViT) -> ViT:
    adapted = copy.deepcopy(vit)
    adapted.norm = Noise()
    return adapted


def test_identical_models_gain_exactly_nothing(vit: ViT, batches: list[Any]) -> None:
    found = score_pair(vit, copy.deepcopy(vit), batches, protocol=QUICK)
    for method in METHODS:
        gain = found.gain('adapted', method)
        assert (gain['mean'], gain['low'], gain['high']) == (0, 0, 0)
        assert found.score('source', method) == found.score('adapted', method)
    assert found.outcome() == 'no difference'
    assert found.score('source', 'knn')['mean'] > 0.2  # of ten classes


def test_features_that_know_nothing_are_harm_and_the_way_back_helps(
    vit: ViT, noise: ViT, batches: list[Any]
) -> None:
    harm = score_pair(vit, noise, batches, protocol=QUICK)
    assert harm.outcome() == 'harm'
    assert harm.gain('adapted', 'knn')['high'] < 0
    assert harm.score('adapted', 'linear')['mean'] < 0.25
    assert score_pair(noise, vit, batches, protocol=QUICK).outcome() == 'helps'


def test_what_reports_show_is_json_of_paired_scores(vit: ViT, noise: ViT, batches: list[Any]) -> None:
    protocol = PairProtocol(draws=2, resamples=100, penalties=(0.1,), turns=4)
    found = score_pair(vit, {'noise': noise, 'same': vit}, batches, strengths=(), protocol=protocol)
    report = json.loads(json.dumps(found.to_dict()))
    assert report['labels'] == {'train': 120, 'validation': 30, 'test': 150, 'few': 100, 'classes': 10}
    assert [row['metric'] for row in report['rows']] == ['knn', 'linear', 'few']
    row = report['rows'][0]
    assert {'source', 'adapted', 'gain', 'best_block', 'turns_source', 'turns_adapted'} <= set(row)
    assert 1 <= row['best_block']['block'] <= vit.depth and row['turns_source']['turns'] == 4
    difference = row['adapted']['mean'] - row['source']['mean']
    assert row['gain']['mean'] == pytest.approx(difference, abs=1e-6)
    assert row['gain']['low'] <= row['gain']['mean'] <= row['gain']['high']
    assert report['outcome'] == 'harm' and found.outcome('same') == 'no difference'
    assert [found.outcome(name) for name in found.adapted] == ['harm', 'no difference']
    assert found.rows('same')[0]['gain']['mean'] == 0
    assert len(report['models']['source']['knn']['draws']) == 2


@pytest.mark.slow
def test_a_source_averaged_over_turns_sees_no_orientation(vit: ViT, batches: list[Any]) -> None:
    protocol = PairProtocol(draws=2, resamples=50, penalties=(0.1,), turns=8)
    turned = [{**b, 'image': torch.rot90(b['image'].flip(-1), 1, (-2, -1))} for b in batches]
    one, other = (score_pair(vit, vit, b, protocol=protocol) for b in (batches, turned))
    for method in METHODS:
        scores = [x.score('turns_source', method)['mean'] for x in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=0.01)


def test_the_curve_begins_at_the_source_and_ends_at_the_adapted_model(vit: ViT, batches: list[Any]) -> None:
    blind = copy.deepcopy(vit)
    with torch.no_grad():
        blind.patch_embed.proj.weight.zero_()
    found = score_pair(vit, blind, batches, strengths=(0.5, 1), protocol=QUICK)
    curve = found.curve()
    assert curve['x'] == [0.0, 0.5, 1.0] and curve['chosen'] < 1
    for series, method in zip(curve['series'], METHODS, strict=True):
        ends = [found.score(name, method)['mean'] for name in ('source', 'adapted')]
        assert [series['y'][0], series['y'][-1]] == ends and ends[1] < 0.15
    for strength, name in ((0.0, 'source'), (0.5, 'strength 0.5'), (1.0, 'adapted')):
        assert found.at(strength) == name and found.at(strength) in found.models
        assert found.rows(name)[0]['adapted'] == found.score(name, 'knn')
    assert score_pair(vit, blind, batches, protocol=QUICK).curve() == {}


def test_weights_between_two_models_are_mixed_and_lora_is_merged(vit: ViT) -> None:
    adapted = copy.deepcopy(vit)
    explora(adapted, ExPLoRAConfig.parse('D-[L]-r4'))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    image = torch.randn(2, 3, 32, 32)
    for strength, expected in ((0.0, vit), (1.0, adapted)):
        mixed = interpolate(vit, adapted, strength)
        assert torch.allclose(mixed(image).cls, expected.eval()(image).cls, atol=1e-4)
    key = 'blocks.2.mlp.fc1.weight'
    ends = [interpolate(vit, adapted, s).state_dict()[key] for s in (0.0, 1.0)]
    middle = interpolate(vit, adapted, 0.25).state_dict()[key]
    assert torch.allclose(middle, 0.75 * ends[0] + 0.25 * ends[1], atol=1e-6)


@pytest.mark.parametrize(
    ('losses', 'expected'),
    [
        ({}, 'no difference'),
        ({'knn': -20}, 'helps'),
        ({'linear': -20}, 'helps'),
        ({'few': -20}, 'no difference'),  # few labels alone are too shaky
        ({'knn': -20, 'few': 2}, 'harm'),
        ({'linear': 2}, 'harm'),
        ({'linear': 1}, 'no difference'),
    ],
)
def test_the_outcome_follows_the_rule(losses: dict[str, int], expected: str) -> None:
    hits = np.zeros((3, 100), dtype=bool)
    hits[:, :50] = True
    changed = {}
    for method in METHODS:
        lost = losses.get(method, 0)
        other = hits.copy()
        other[:, :50][:, : max(lost, 0)] = False
        other[:, 50 : 50 + max(-lost, 0)] = True
        changed[method] = Measured(other, (0.5,), ('',))
    source = {method: Measured(hits, (0.5,), ('',)) for method in METHODS}
    found = Comparison({'source': source, 'adapted': changed}, ('adapted',), (), {}, QUICK)
    assert found.outcome() == expected


def test_bad_input_is_refused_in_a_sentence(
    vit: ViT, build_vit: Callable[..., ViT], batches: list[Any]
) -> None:
    one_class = [{**b, 'label': torch.zeros_like(b['label'])} for b in batches]
    orders = iter([batches, batches[::-1]])
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: score_pair(vit, vit, []), 'no labeled tiles'),
        (lambda: score_pair(vit, vit, one_class), 'at least two classes with 3 or more labeled tiles each'),
        (lambda: score_pair(vit, vit, lambda: next(orders), protocol=QUICK), 'same tiles in the same order'),
        (
            lambda: score_pair(vit, vit, batches, strengths=(2,)),
            r'between 0 \(source\) and 1 \(adapted\), got 2',
        ),
        (lambda: score_pair(vit, {'source': vit}, batches), 'need names other than source'),
        (lambda: interpolate(vit, build_vit(width=32), 0.5), 'differ in name or shape, first'),
        (lambda: PairProtocol(turns=3), 'turns must be 1, 4'),
        (lambda: PairProtocol(draws=0), 'draws and resamples must be at least 1, got 0 and 1000'),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()
