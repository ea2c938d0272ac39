"""Losses of self-distillation (Oquab et al. 2024), in float32 whatever the model computes in.

lightly's `DINOLoss` and `IBOTPatchLoss` give the same totals (tests/objectives/test_losses.py), but each
ties the teacher's centering, the loss and the update of the center into one call. Apart, they let Sinkhorn
take the place of centering, show the shares of global and local crops, and validate without an update.
"""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightly.models.modules.center import Center, center_momentum
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Logits whose float32 numbers exist at a time; DINOv2's heads give 40 million for eight images.
_PIECE = 2**22


class TargetCentering(nn.Module):
    """Turns a teacher's logits into targets over prototypes that cannot all be the same one.

    `centering` subtracts a running mean of the logits before the softmax (DINO); `sinkhorn` spreads the
    batch evenly over the prototypes by three Sinkhorn-Knopp iterations (SwAV), without memory.
    """

    def __init__(
        self, prototypes: int, kind: Literal['centering', 'sinkhorn'] = 'centering', momentum: float = 0.9
    ) -> None:
        """Initialize a TargetCentering.

        Args:
            prototypes: Prototypes K.
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
        """Targets of a batch.

        The center is updated after it was used, and in training only.

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
            usable = (count > 0) & torch.isfinite(mean).all()  # else the center stays, also for a checkpoint
            self.center.center = torch.where(usable, moved, self.center.value)
        return targets


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Sinkhorn-Knopp over the logits of all processes, however many rows each of them has.

    lightly's (tests/objectives/test_losses.py compares) takes it that all processes have as many, and that
    a caller shifts their logits alike.

    Args:
        logits: Teacher's logits of this process, shape (N, K), N at least 0.
        temperature: Teacher's temperature.
        iterations: Times that prototypes, then rows, are made to sum up evenly.

    Returns:
        Probabilities, shape (N, K).
    """
    # A common shift changes nothing but keeps the exponential in range.
    highest = logits.max() if len(logits) else logits.new_tensor(float('-inf'))
    shares = ((logits - _total(highest, dist.ReduceOp.MAX)) / temperature).exp()
    for _ in range(iterations):
        shares = shares / _total(shares.sum(0, keepdim=True))
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def _total(values: Tensor, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """Sum, or another reduction, over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values, operation)
    return values


def cross_entropies(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every student crop to every teacher crop, averaged over images.

    Args:
        targets: Teacher's probabilities by crop, shape (T, B, K).
        logits: Student's logits by crop, shape (S, B, K).
        temperature: Student's temperature.

    Returns:
        Means, shape (T, S).
    """
    logits = logits.float() / temperature
    # -sum(t log softmax(s)) = logsumexp(s) - sum(t s), as targets sum to one: no log-softmax is stored.
    return logits.logsumexp(-1).mean(1) - torch.einsum('tbk,sbk->ts', targets, logits) / logits.shape[1]


def dino_losses(
    targets: Tensor, global_logits: Tensor, local_logits: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Class-token loss of global and local crops, as weighted in DINOv2's total.

    Args:
        targets: Teacher's probabilities of the global crops, shape (G, B, K).
        global_logits: Student's logits of the same crops, shape (G, B, K).
        local_logits: Student's logits of the local crops, shape (n, B, K), or None.
        temperature: Student's temperature.

    Returns:
        Loss of the global crops, each against the other ones, and of the local crops against all: each
        summed over pairs and divided by the number of all pairs.
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
    """Masked-patch loss: cross-entropy averaged over an image's masked tokens, then over all images.

    Args:
        targets: Teacher's probabilities of the masked tokens, shape (M, K).
        logits: Student's logits of the same tokens, shape (M, K).
        mask: True where a token is masked, shape (B, ...), in the order of the rows above; on any device.
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
    """Cross-entropy of each row, (M, K) and (M, K) -> (M,), of few rows at a time in float32.

    What the gradient needs is made at once and takes the place of targets and logits: whoever goes on with
    other crops has their memory free.
    """

    @staticmethod
    def forward(ctx: Any, targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
        """Log of the sum less the share of the targets; kept is the softmax less the targets."""
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
        """That over the temperature."""
        (kept,) = ctx.saved_tensors
        return None, kept.mul_((grad / ctx.temperature)[:, None]), None


def entropies(targets: Tensor) -> tuple[Tensor, Tensor]:
    """How vague targets are, and how evenly a batch uses the prototypes, for watching over collapse.

    Args:
        targets: Probabilities, shape (..., K).

    Returns:
        Mean entropy of a row over log K: 1 where targets say nothing. Entropy of the mean row over the
        most that as many sharp rows can have: 0 where all rows choose one prototype, at most 1.
    """
    rows = targets.flatten(0, -2)
    count, prototypes = rows.shape
    sharp = torch.special.entr(rows).sum(-1).mean() / math.log(prototypes)
    spread = torch.special.entr(rows.mean(dim=0)).sum() / math.log(max(2, min(count, prototypes)))
    return sharp, spread.clamp(max=1)
