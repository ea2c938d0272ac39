"""Maps of whole scenes: tiled prediction with georeferenced output in bounded memory."""

from explora_geo.maps.run import MapOptions, Outputs, describe_plan, make_map

__all__ = ['MapOptions', 'Outputs', 'describe_plan', 'make_map']
