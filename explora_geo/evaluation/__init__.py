"""Evaluation of frozen features: probes, block-wise analysis, scores before and after an adaptation."""

from explora_geo.evaluation.blocks import BlockRow, analyze_blocks
from explora_geo.evaluation.comparison import Comparison, PairProtocol, interpolate, score_pair
from explora_geo.evaluation.features import FeatureTable, cached_features, extract_features
from explora_geo.evaluation.label_free import compare_backbones
from explora_geo.evaluation.probes import Budget, bootstrap_interval, knn_accuracy
from explora_geo.evaluation.protocol import ProbeProtocol, probe, run_probes
from explora_geo.evaluation.sweep import SweepConfig, linear_sweep

__all__ = [
    'BlockRow',
    'Budget',
    'Comparison',
    'FeatureTable',
    'PairProtocol',
    'ProbeProtocol',
    'SweepConfig',
    'analyze_blocks',
    'bootstrap_interval',
    'cached_features',
    'compare_backbones',
    'extract_features',
    'interpolate',
    'knn_accuracy',
    'linear_sweep',
    'probe',
    'run_probes',
    'score_pair',
]
