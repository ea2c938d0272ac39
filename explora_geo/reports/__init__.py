"""Report of an adaptation: a single self-contained page."""

from explora_geo.reports.page import write_report
from explora_geo.reports.pictures import compute_pictures, display_tiles, reconstruct
from explora_geo.reports.verdict import Verdict, judge

__all__ = ['Verdict', 'compute_pictures', 'display_tiles', 'judge', 'reconstruct', 'write_report']
