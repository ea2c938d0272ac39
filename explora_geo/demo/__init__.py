"""The main job on shipped Sentinel-2 tiles: adapt, measure before and after, report."""

from explora_geo.demo.run import run_demo

__all__ = ['run_demo']
