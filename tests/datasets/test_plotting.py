"""Pictures of several versions of images."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from explora_geo.datasets import plot_rows

BANDS = ('B02', 'B03', 'B04', 'B08')


def shown(figure: plt.Figure, row: int, column: int, columns: int) -> np.ndarray:
    return np.asarray(figure.axes[row * columns + column].images[0].get_array())


def test_versions_are_stretched_alike_and_bands_chosen_by_name() -> None:
    image = torch.rand(2, 4, 8, 8)
    figure = plot_rows({'input': image, 'half': image / 2}, BANDS, ['a', 'b'])
    first = image[0, [2, 1, 0]].numpy()
    low, high = np.percentile(first, (2, 98))
    expected = np.clip((first / 2 - low) / (high - low), 0, 1).transpose(1, 2, 0)
    np.testing.assert_allclose(shown(figure, 1, 0, 2), expected, atol=1e-6)
    assert [axis.get_title() for axis in figure.axes[:2]] == ['a', 'b']
    assert [figure.axes[i].get_ylabel() for i in (0, 2)] == ['input', 'half']
    plt.close(figure)


def test_one_band_is_grey_and_three_are_false_colour() -> None:
    image = torch.rand(1, 4, 8, 8)
    grey = plot_rows({'near infrared': image}, BANDS, shown=['B08'])
    assert shown(grey, 0, 0, 1).shape == (8, 8)
    false = plot_rows({'false colour': image}, BANDS, shown=['B08', 'B04', 'B03'])
    assert shown(false, 0, 0, 1).shape == (8, 8, 3)
    plt.close('all')


def test_a_band_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match='B11'):
        plot_rows({'input': torch.rand(1, 4, 8, 8)}, BANDS, shown=['B11'])
