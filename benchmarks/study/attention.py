"""A probe that attends to patches instead of averaging them, as MAE features need."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS, BATCH, RATES = 300, 128, (1e-3, 3e-3)


class AttentionProbe(nn.Module):
    """One learned query over the patches of an image, and a linear layer."""

    def __init__(self, width: int, classes: int) -> None:
        """Initialize an AttentionProbe."""
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.attend = nn.MultiheadAttention(width, max(1, width // 64), batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Return scores, shape (B, K), of patches, shape (B, L, D)."""
        patches = self.norm(patches.mT).mT
        return self.head(self.attend(self.query.expand(len(patches), -1, -1), patches, patches)[0][:, 0])


def attention_hits(parts: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Return hits on the test part, shape (M,).

    Args:
        parts: Patches that fit the probe, choose the learning rate, and test it, shapes (N, L, D).
        labels: Their classes.
    """
    found = []
    for rate in RATES:
        torch.manual_seed(0)
        probe = AttentionProbe(parts[0].shape[-1], int(labels[0].max()) + 1).to(parts[0].device)
        optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, STEPS, pct_start=0.1)
        for _ in range(STEPS):
            rows = torch.randint(len(parts[0]), (BATCH,)).to(parts[0].device)
            loss = F.cross_entropy(probe(parts[0][rows].float()), labels[0][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            chosen, hits = (
                torch.cat([probe.eval()(x.float()).argmax(1) for x in part.split(1024)]) == label
                for part, label in zip(parts[1:], labels[1:], strict=True)
            )
        found.append((float(chosen.float().mean()), hits))
    return max(found, key=lambda pair: pair[0])[1]
