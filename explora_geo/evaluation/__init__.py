"""How good features are: probes on frozen features and few-label tuning."""

from explora_geo.evaluation.features import extract_features, feature_sets
from explora_geo.evaluation.intervals import Interval, mean_interval
from explora_geo.evaluation.probes import knn_accuracy, linear_probe
from explora_geo.evaluation.tuning import tune_few_labels

__all__ = [
    'Interval',
    'extract_features',
    'feature_sets',
    'knn_accuracy',
    'linear_probe',
    'mean_interval',
    'tune_few_labels',
]
