"""Whitening of features in part: what all images share counts less, what tells them apart counts more."""

import torch
from torch import Tensor


def whitening_matrix(covariance: Tensor, power: float, ridge: float = 0.02) -> Tensor:
    """A symmetric matrix that evens out the principal directions of features and keeps their axes.

    Args:
        covariance: Covariance of the features, shape (D, D).
        power: Power of the inverse standard deviation of each principal direction: 0 leaves the features,
            1 whitens them.
        ridge: Added to the standard deviations, as a share of the largest, so that noise stays small.

    Returns:
        What centered features (N, D) are multiplied with, shape (D, D); it keeps their mean squared length.
        The identity where all features are the same.
    """
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    deviations = values.clamp(min=0).sqrt()
    if not deviations[-1] > 0:
        return torch.eye(len(covariance)).to(covariance)
    scale = (deviations / deviations[-1] + ridge) ** -power
    scale *= (values.sum() / (values * scale**2).sum()).sqrt()
    return (vectors * scale @ vectors.T).to(covariance)
