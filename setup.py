"""What pyproject.toml cannot say: the folder `benchmarks` is installed as the package `explora_bench`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=['explora_geo', 'explora_geo.*']),
        *('explora_bench', *(f'explora_bench.{name}' for name in find_packages('benchmarks'))),
    ],
    package_dir={'explora_bench': 'benchmarks'},
)
