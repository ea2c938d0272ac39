"""Settings of all property-based tests: the same examples each time, few, without a clock."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    'steady', derandomize=True, database=None, deadline=None, max_examples=40,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile('steady')
