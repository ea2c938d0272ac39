"""Making batches out of samples, some of which may have been skipped."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import default_collate


def collate_skipping(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack the good samples of a batch and name the others.

    Args:
        samples: Samples of a dataset; one that could not be used is
            ``{'skipped': '<path>: <reason>'}``.

    Returns:
        The batch: ``image`` of shape (B, C, H, W), ``label`` of shape (B,) if there are labels,
        and, only if samples were skipped, ``skipped``, the list of their messages.

    Raises:
        ValueError: If no sample is good, or the images differ in size.
    """
    good = [sample for sample in samples if 'skipped' not in sample]
    skipped = [sample['skipped'] for sample in samples if 'skipped' in sample]
    if not good:
        raise ValueError(
            f'A batch needs at least one usable tile, but all {len(skipped)} were skipped; '
            f'repair or remove them, first {skipped[:1]}.'
        )
    shapes = sorted({tuple(sample['image'].shape) for sample in good})
    if len(shapes) > 1:
        raise ValueError(
            f'Images of a batch must have one shape (C, H, W), got {shapes[:4]}; '
            'give size to bring all tiles to one size.'
        )
    batch: dict[str, Any] = default_collate(good)
    if skipped:
        batch['skipped'] = skipped
    return batch
