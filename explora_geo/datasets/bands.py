"""Names of bands; see `explora_geo.bands`."""

from ..bands import ALIASES, GREY, RGB, canonical, match_bands, name_bands, same_bands, select_bands, spell

__all__ = [
    'ALIASES',
    'GREY',
    'RGB',
    'canonical',
    'match_bands',
    'name_bands',
    'same_bands',
    'select_bands',
    'spell',
]
