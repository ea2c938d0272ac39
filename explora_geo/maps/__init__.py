"""Maps of whole scenes: tiled prediction with georeferenced output, bounded in memory."""

from explora_geo.maps.run import MapOptions, check_outputs, describe_plan, make_map

__all__ = ['MapOptions', 'check_outputs', 'describe_plan', 'make_map']
