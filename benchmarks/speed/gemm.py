"""What the matrix products of a step take on their own: the limit that a step cannot go below."""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .clock import wait

_CONVOLUTIONS = frozenset({'convolution', 'convolution_backward'})
PRODUCTS = frozenset({'mm', 'addmm', 'bmm', 'baddbmm'}) | _CONVOLUTIONS
#: Fused attention of GPUs: two products forward, five backward.
_ATTENTION = '_scaled_dot_product_'
#: Runs in a row that are timed together on a GPU, where starting one takes as long as a small product.
_QUEUED = 20


class Product(NamedTuple):
    """One matrix product.

    Attributes:
        name: Operator.
        shapes: Shape, strides and type of each tensor.
        flops: Floating-point operations; convolutions count as none and are timed only.
    """

    name: str
    shapes: tuple[Any, ...]
    flops: int


class ProductRecorder(TorchDispatchMode):
    """Records the matrix products that run inside it."""

    def __init__(self) -> None:
        """Initialize a ProductRecorder."""
        super().__init__()
        self.counts: Counter[Product] = Counter()
        self.calls: dict[Product, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    @property
    def flops(self) -> int:
        """Operations of all products."""
        return sum(product.flops * count for product, count in self.counts.items())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, and remember it if it is a product."""
        name, options = func.overloadpacket.__name__, kwargs or {}
        outcome = func(*args, **options)
        if name in PRODUCTS or name.startswith(_ATTENTION):
            tensors = [a for a in args if isinstance(a, Tensor)]
            shapes = tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)
            product = Product(name, shapes, _flops(func, args, options, outcome))
            self.counts[product] += 1
            if product not in self.calls:
                like = tuple(_like(a) if isinstance(a, Tensor) else a for a in args)
                self.calls[product] = (func, like, options)
        return outcome


def count_flops(step: Callable[[], object]) -> int:
    """Operations of the matrix products of a step; convolutions count as none."""
    return _record(step).flops


def _record(step: Callable[[], object]) -> ProductRecorder:
    with torch.enable_grad(), ProductRecorder() as recorder:
        step()
    return recorder


def _like(tensor: Tensor) -> Tensor:
    """Random numbers of the same layout; what was expanded is expanded again, whole numbers are kept."""
    if not tensor.is_floating_point():
        return tensor.clone()
    kept = [1 if stride == 0 else n for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    values = torch.empty_strided(kept, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return values.normal_().expand(tensor.shape)


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outcome: Any) -> int:
    if func.overloadpacket.__name__ in _CONVOLUTIONS:
        return 0
    count = flop_registry.get(func.overloadpacket)  # torch knows no operations of a CPU's fused attention
    return 0 if count is None else int(count(*args, **kwargs, out_val=outcome))


class Limit(NamedTuple):
    """The limit of a step.

    Attributes:
        seconds: Sum of its matrix products, each timed alone.
        flops: Operations of the products.
        rate: Operations per second of the machine's fastest large product of that precision.
    """

    seconds: float
    flops: int
    rate: float


@torch.no_grad()
def measure_limit(step: Callable[[], object], precision: str, repeats: int = 3) -> Limit:
    """Record the products of a step and time each of them alone.

    Args:
        step: Training step.
        precision: `bf16` or `fp32`, for the rate of the machine.
        repeats: Runs of each product, of which the fastest counts.

    Returns:
        The limit.
    """
    recorder = _record(step)
    seconds = 0.0
    for product, count in recorder.counts.items():
        func, args, kwargs = recorder.calls[product]
        seconds += count * _fastest(partial(func, *args, **kwargs), repeats)
    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    device = next(iter(recorder.calls.values()))[1][0].device
    side = 8192 if device.type == 'cuda' else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return Limit(seconds, recorder.flops, 2 * side**3 / _fastest(lambda: a @ b, repeats + 2))


def _fastest(run: Callable[[], object], repeats: int) -> float:
    queued = _QUEUED if torch.cuda.is_available() else 1
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        for _ in range(queued):
            run()
        wait()
        seconds.append((time.perf_counter() - start) / queued)
    return min(seconds)
