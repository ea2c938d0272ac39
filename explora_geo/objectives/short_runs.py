"""YAML-ready settings for runs of minutes, which `adapt` writes and studies vary."""

from typing import Any

#: Arguments of `DINOv2`: small heads and sharp targets.
SHORT_DINOV2: dict[str, dict[str, Any]] = {
    'head': {'prototypes': 1024, 'hidden_dim': 512, 'bottleneck_dim': 128},
    'teacher': {'centering': 'sinkhorn', 'temperature': 0.04, 'final_temperature': 0.04},
}
#: Its crops, except their sides; color carries information in satellite images.
SHORT_VIEWS: dict[str, Any] = {
    'num_local': 4,
    'local_scale': [0.1, 0.4],
    'brightness': 0.3,
    'contrast': 0.3,
    'saturation': 0.1,
    'hue': 0.05,
    'grayscale': 0.1,
    'solarize': 0.0,
}
_OPTIM = {'lr_scaling': 'none', 'warmup_fraction': 0.1, 'min_lr': 1e-6}
_TRIPLE = {'base_lr': 5e-4, **_OPTIM, 'adapter_lr_multiplier': 3.0}
#: Arguments of `OptimConfig` by objective.
SHORT_OPTIM: dict[str, dict[str, Any]] = {
    'MAE': {'base_lr': 1.5e-3, **_OPTIM},
    **dict.fromkeys(('DINOv2', 'Anchor', 'PatchAlignment'), _TRIPLE),
}


def crop_sides(side: int, patch: int) -> dict[str, int]:
    """Return the sides of global and local crops, pixels: three quarters and three eighths of the image's."""
    grid = max(2, round(0.75 * side / patch))
    return {'global_size': grid * patch, 'local_size': max(1, grid // 2) * patch}
