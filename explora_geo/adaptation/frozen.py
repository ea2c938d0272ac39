"""Frozen linear layers that cache a low-precision copy of their weight, or store only that copy."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HELD = '_in_low_precision'


class FrozenLinear(nn.Linear):
    """Linear layer with a frozen weight, whose output equals that of `nn.Linear` in every precision.

    Attributes:
        keeps_copy: Whether to cache a copy in autocast's dtype between uses.
    """

    keeps_copy = True

    def __init__(self, base: nn.Linear) -> None:
        """Wrap a linear layer without copying its weight and bias."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, shape (..., in) -> (..., out)."""
        weight = self._low(self.weight)
        if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            weight = weight.to(x.dtype)  # stored in lower precision than the computation
        return F.linear(x, weight, self.bias if self.bias is None else self._low(self.bias))

    def _low(self, tensor: Tensor) -> Tensor:
        return in_autocast_type(tensor) if self.keeps_copy else tensor

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain linear layer with the same values."""
        return self._plain(self.weight if self.bias is None else self.weight.to(self.bias.dtype))

    def _plain(self, weight: Tensor) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device='meta')
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return layer


def in_autocast_type(weight: Tensor) -> Tensor:
    """Convert a frozen matrix to autocast's dtype once and cache the copy on the matrix.

    Autocast itself converts at every use, and autograd keeps each copy until the backward pass: one each for
    global crops, local crops and the teacher. A teacher that shares the matrix shares the copy. Writes
    through `.data` go unnoticed. Trainable weights and anything but plain parameters are returned unchanged.
    """
    device = weight.device.type
    if weight.requires_grad or type(weight) is not nn.Parameter or torch.compiler.is_compiling():
        return weight
    if not torch.is_autocast_enabled(device) or weight.is_inference():
        return weight
    dtype = torch.get_autocast_dtype(device)
    if weight.dtype == dtype:
        return weight
    state = dtype, weight.data_ptr(), weight._version  # changes with the values
    held = getattr(weight, _HELD, None)
    if held is None or held[0] != state:
        with torch.inference_mode(False):  # a copy made in validation must work in training
            held = state, weight.detach().to(dtype)
        setattr(weight, _HELD, held)
    return held[1]


def convert_each_time(model: nn.Module) -> None:
    """Disable cached copies in place; sharded matrices are whole only while in use."""
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            module.keeps_copy = False


def hold_frozen(model: nn.Module, dtype: torch.dtype) -> int:
    """Store the frozen matrices of an adapted model only in a lower precision, in place.

    Under autocast to that dtype, the outputs of the model and of a teacher that shares its layers do not
    change. The float32 values are discarded; reload the source weights where they are needed.

    Returns:
        Number of bytes saved.
    """
    layers = (m for m in model.modules() if isinstance(m, FrozenLinear))
    weights = {id(m.weight): m.weight for m in layers if not m.weight.requires_grad}  # extras may train
    before = sum(w.nbytes for w in weights.values())
    for weight in weights.values():
        weight.data = weight.data.to(dtype)
        vars(weight).pop(_HELD, None)
    return before - sum(w.nbytes for w in weights.values())
