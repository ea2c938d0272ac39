"""Attention on a CPU, fused or as plain products: python -m benchmarks.speed.attention > attention.md."""

import statistics
import time

import torch

from explora_geo.models.blocks import Attention

from ..tables.records import markdown_table

TOKENS, FORMS = (37, 65, 197, 257), ('fused', 'plain')
TYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
HEAD = f"""# Attention on a CPU

`python -m benchmarks.speed.attention`: a layer of width 192 and 3 heads with its projections, 64 images,
forward and back, one thread, torch {torch.__version__}; milliseconds, to be compared within the page.
"""


def milliseconds(tokens: int, dtype: torch.dtype, fused: bool, seconds: float) -> float:
    """Return the median time of a layer, forward and backward."""
    torch.manual_seed(0)
    layer = Attention(192, 3).to(dtype)
    layer.fused_attn = fused
    x = torch.randn(64, tokens, 192, dtype=dtype, requires_grad=True)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        layer(x).sum().backward()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main(seconds: float = 2.0) -> str:
    """Return a page of milliseconds by data type, form and number of tokens."""
    ways = {f'{form}, {name}': (kind, form == 'fused') for name, kind in TYPES.items() for form in FORMS}
    lines = [[str(n), *(f'{milliseconds(n, *way, seconds):.1f}' for way in ways.values())] for n in TOKENS]
    return '\n'.join([HEAD, *markdown_table(['tokens', *ways], lines)])


if __name__ == '__main__':
    torch.set_num_threads(1)
    print(main())
