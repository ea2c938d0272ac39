"""LoRA-r8 tuning of a model on few labels, in memory."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from explora_geo.adaptation import explora
from explora_geo.models.predictor import ImagePredictor
from explora_geo.models.readout import turn
from explora_geo.models.vit import ViT
from explora_geo.trainers.options import ADAPTATIONS

from .domains import Domain, take
from .scoring import draw_labels

#: Batch, and learning rate of LoRA and head, chosen on validation images for the unchanged source.
BATCH, RATE = 32, 3e-3
#: Optimizer steps by labels per class, and for more labels.
STEPS = {5: 60, 22: 100, 25: 120}
LONGEST = 200


def tune(
    vit: ViT,
    read: Callable[[Tensor], Tensor],
    domain: Domain,
    budget: int,
    seed: int,
    rate: float = RATE,
    tested: Tensor | None = None,
) -> Tensor:
    """Tune on labels drawn by a seed; return which test images are correct, shape (M,)."""
    seed_everything(seed, verbose=False)
    device = domain.image.device
    rows = domain.archive[draw_labels(domain, budget, seed)]
    backbone = copy.deepcopy(vit)
    explora(backbone, ADAPTATIONS['lora'])
    model = ImagePredictor(backbone, int(domain.label.max()) + 1).to(device).train()
    steps = STEPS.get(budget, LONGEST)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    schedule = OneCycleLR(optimizer, rate, steps, pct_start=0.1, cycle_momentum=False)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        place, order = take(order, len(rows), BATCH)
        batch = rows[place.to(device)]
        image = turn(read(batch), int(torch.randint(8, ())))
        with torch.autocast(device.type, torch.bfloat16):
            found = model(image)
        loss = F.cross_entropy(found.float(), domain.label[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    tested = domain.test if tested is None else tested
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        return torch.cat([model(read(i)).argmax(1) == domain.label[i] for i in tested.split(512)])
