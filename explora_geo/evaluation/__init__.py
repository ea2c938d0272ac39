"""How good features are: probes on frozen features, block by block, before and after an adaptation."""

from explora_geo.evaluation.attention import class_attention
from explora_geo.evaluation.blocks import BlockRow, analyse_blocks
from explora_geo.evaluation.budgets import Budget
from explora_geo.evaluation.cache import cached_features
from explora_geo.evaluation.compare import interpolate, score_pair
from explora_geo.evaluation.comparison import Comparison, PairProtocol
from explora_geo.evaluation.features import FeatureTable, extract_features, feature_sets
from explora_geo.evaluation.intervals import Interval, bootstrap_interval, mean_interval
from explora_geo.evaluation.label_free import compare_backbones
from explora_geo.evaluation.probes import knn_accuracy, linear_probe
from explora_geo.evaluation.protocol import ProbeProtocol, probe, run_probes
from explora_geo.evaluation.sweep import SweepConfig, linear_sweep

__all__ = [
    'BlockRow',
    'Budget',
    'Comparison',
    'FeatureTable',
    'Interval',
    'PairProtocol',
    'ProbeProtocol',
    'SweepConfig',
    'analyse_blocks',
    'bootstrap_interval',
    'cached_features',
    'class_attention',
    'compare_backbones',
    'extract_features',
    'feature_sets',
    'interpolate',
    'knn_accuracy',
    'linear_probe',
    'linear_sweep',
    'mean_interval',
    'probe',
    'run_probes',
    'score_pair',
]
