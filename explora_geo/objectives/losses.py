"""Self-distillation losses (Oquab et al. 2024), in float32 regardless of the model's precision.

lightly's `DINOLoss` and `IBOTPatchLoss` give the same totals (tests/objectives/test_losses.py), but each
combines centering, loss and center update in one call. Separate steps allow Sinkhorn instead of centering,
separate losses for global and local crops, and validation without an update.
"""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightly.models.modules.center import Center, center_momentum
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Logits converted to float32 at a time; DINOv2's heads produce 40 million for eight images.
_PIECE = 2**22


class TargetCentering(nn.Module):
    """Conversion of a teacher's logits to targets that cannot all collapse to one prototype.

    `centering` subtracts a running mean of the logits before the softmax (DINO); `sinkhorn` spreads the
    batch evenly over the prototypes with three stateless Sinkhorn-Knopp iterations (SwAV).
    """

    def __init__(
        self, prototypes: int, kind: Literal['centering', 'sinkhorn'] = 'centering', momentum: float = 0.9
    ) -> None:
        """Initialize a TargetCentering.

        Args:
            prototypes: Number of prototypes K.
            kind: `centering` or `sinkhorn`.
            momentum: Momentum of the center.

        Raises:
            ValueError: If the kind is unknown.
        """
        super().__init__()
        if kind not in ('centering', 'sinkhorn'):
            raise ValueError(f"centering must be 'centering' or 'sinkhorn', got {kind!r}")
        self.kind = kind
        self.center = Center(size=(1, prototypes), momentum=momentum)

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Compute the targets of a batch.

        The center is updated after use, and only in training.

        Args:
            logits: Teacher's logits, shape (N, K).
            temperature: Teacher's temperature.

        Returns:
            Probabilities, shape (N, K).
        """
        logits = logits.float()
        if self.kind == 'sinkhorn':
            return sinkhorn(logits, temperature)
        targets = ((logits - self.center.value) / temperature).softmax(dim=-1)
        if self.training:
            count = _total(logits.new_tensor(float(len(logits))))
            mean = _total(logits.sum(0, keepdim=True)) / count
            moved = center_momentum(self.center.value, mean, self.center.momentum)
            usable = (count > 0) & torch.isfinite(mean).all()  # else keep the center, which checkpoints hold
            self.center.center = torch.where(usable, moved, self.center.value)
        return targets


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Run Sinkhorn-Knopp over the logits of all processes, with any number of rows in each.

    lightly's version (compared in tests/objectives/test_losses.py) assumes equal row counts in all processes
    and a caller that shifts their logits alike.

    Args:
        logits: Teacher's logits in this process, shape (N, K), N at least 0.
        temperature: Teacher's temperature.
        iterations: Number of normalizations of prototypes, then rows.

    Returns:
        Probabilities, shape (N, K).
    """
    # A common shift keeps the exponential in range without changing the result.
    highest = logits.max() if len(logits) else logits.new_tensor(float('-inf'))
    shares = ((logits - _total(highest, dist.ReduceOp.MAX)) / temperature).exp()
    for _ in range(iterations):
        shares = shares / _total(shares.sum(0, keepdim=True))
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def _total(values: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Reduce values over all processes, by default to their sum."""
    if dist.is_initialized():
        dist.all_reduce(values, operation)
    return values


def cross_entropies(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy of every student crop to every teacher crop, averaged over images.

    Args:
        targets: Teacher's probabilities by crop, shape (T, B, K).
        logits: Student's logits by crop, shape (S, B, K).
        temperature: Student's temperature.

    Returns:
        Means, shape (T, S).
    """
    logits = logits.float() / temperature
    # -sum(t log softmax(s)) = logsumexp(s) - sum(t s), as targets sum to 1: avoids storing a log-softmax.
    return logits.logsumexp(-1).mean(1) - torch.einsum('tbk,sbk->ts', targets, logits) / logits.shape[1]


def dino_losses(
    targets: Tensor, global_logits: Tensor, local_logits: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Compute the class-token losses of global and local crops, as weighted in DINOv2's total.

    Args:
        targets: Teacher's probabilities of the global crops, shape (G, B, K).
        global_logits: Student's logits of the same crops, shape (G, B, K).
        local_logits: Student's logits of the local crops, shape (n, B, K), or None.
        temperature: Student's temperature.

    Returns:
        Loss of the global crops, each against the others, and of the local crops against all global ones;
        both are summed over their pairs and divided by the number of all pairs.
    """
    count = len(targets)
    local = 0 if local_logits is None else len(local_logits)
    pairs = count * (count - 1 + local)
    between = cross_entropies(targets, global_logits, temperature)
    loss_global = (between.sum() - between.diagonal().sum()) / pairs
    if local_logits is None:
        return loss_global, None
    return loss_global, cross_entropies(targets, local_logits, temperature).sum() / pairs


def ibot_loss(targets: Tensor, logits: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Compute the masked-patch loss: cross-entropy averaged over masked tokens per image, then over images.

    Args:
        targets: Teacher's probabilities of the masked tokens, shape (M, K).
        logits: Student's logits of the same tokens, shape (M, K).
        mask: True where a token is masked, shape (B, ...), in the row order above; on any device.
        temperature: Student's temperature.

    Returns:
        Scalar loss; an image without masked tokens counts as 0.
    """
    mask = mask.flatten(1)
    found = _PieceWise.apply(targets, logits, temperature)
    counts = mask.sum(dim=1, keepdim=True).clamp(min=1)
    weights = (1 / counts).expand_as(mask)[mask].to(targets.device)
    return (found * weights).sum() / len(mask)


class _PieceWise(torch.autograd.Function):
    """Cross-entropy per row, (M, K) and (M, K) -> (M,), in float32 for a few rows at a time.

    The forward pass stores only what the gradient needs instead of targets and logits, which frees their
    memory for other crops.
    """

    @staticmethod
    def forward(ctx: Any, targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
        """Compute logsumexp minus the targets' share; save softmax minus targets for the backward pass."""
        rows = max(1, _PIECE // logits.shape[1])
        found, kept = [], torch.empty_like(logits) if ctx.needs_input_grad[1] else None
        for i in range(0, max(1, len(logits)), rows):
            target, piece = targets[i : i + rows], logits[i : i + rows].float() / temperature
            norm = piece.logsumexp(-1)
            found.append(norm - (target * piece).sum(-1))
            if kept is not None:
                kept[i : i + rows] = piece.sub_(norm[:, None]).exp_().sub_(target)
        if kept is not None:
            ctx.temperature = temperature
            ctx.save_for_backward(kept)
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        """Scale the saved difference by the incoming gradient over the temperature."""
        (kept,) = ctx.saved_tensors
        return None, kept.mul_((grad / ctx.temperature)[:, None]), None


def entropies(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Measure how vague targets are and how evenly a batch uses the prototypes, to detect collapse.

    Args:
        targets: Probabilities, shape (..., K).

    Returns:
        Mean row entropy / log K: 1 if targets carry no information. Entropy of the mean row / the largest
        that as many sharp rows can reach: 0 if all rows choose the same prototype, at most 1.
    """
    rows = targets.flatten(0, -2)
    count, prototypes = rows.shape
    sharp = torch.special.entr(rows).sum(-1).mean() / math.log(prototypes)
    spread = torch.special.entr(rows.mean(dim=0)).sum() / math.log(max(2, min(count, prototypes)))
    return sharp, spread.clamp(max=1)
