"""Bytes that a student and its teacher hold, with the frozen trunk stored once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import atomic_path
from explora_geo.models import create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import DINOv2

_TITLE = '# Memory of student and teacher'


class Memory(NamedTuple):
    """Bytes of tensors, each storage counted once.

    Attributes:
        model: The backbone before it is adapted.
        pair: Backbones of student and teacher.
        copied: The same with a teacher that is a whole copy.
        heads: Heads of student and teacher.
        optimizer: AdamW's two averages of everything that trains.
    """

    model: int
    pair: int
    copied: int
    heads: int
    optimizer: int


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages of tensors."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def measure_memory(model: str, adaptation: str, head: HeadConfig) -> Memory:
    """Build the DINOv2 objective and count what it stores.

    Args:
        model: Backbone name.
        adaptation: What trains, in the paper's notation.
        head: Size of the shared head.

    Returns:
        The bytes.
    """
    with torch.device('meta'):
        vit = create_vit(model, **DINOv2.backbone_options)
        plain = sum(t.nbytes for t in vit.state_dict().values())
        explora(vit, ExPLoRAConfig.parse(adaptation))
    vit.to_empty(device='cpu')  # real storages, whose numbers do not matter
    nn.init.ones_(vit.get_parameter('mask_token'))  # trained, as in DINOv2's files
    objective = DINOv2(vit, head)
    teacher = objective.final_backbone
    both = [*vit.state_dict().values(), *teacher.state_dict().values()]
    heads = nn.ModuleList([objective.dino_head, objective.teacher.parts['dino_head']])
    trained = sum(p.nbytes for p in objective.parameters() if p.requires_grad)
    student = stored_bytes(vit.state_dict().values())
    return Memory(plain, stored_bytes(both), 2 * student, stored_bytes(heads.parameters()), 2 * trained)


def write_memory(out: Path, model: str, adaptations: Sequence[str]) -> Path:
    """Tabulate the memory of several adaptations of one backbone.

    Args:
        out: Folder of `memory.md`.
        model: Backbone name.
        adaptations: Notations.

    Returns:
        The Markdown file.
    """
    head = HeadConfig(prototypes=65536, hidden_dim=2048)
    lines = [
        _TITLE,
        '',
        f'Made by `explora-bench memory --model {model}`: float32, each storage counted once, head of '
        f'{head.prototypes} prototypes. Shares are of one backbone before it is adapted.',
        '',
        '| adaptation | one backbone, MB | student + teacher, MB | share | share with a copied teacher '
        '| both heads, MB | AdamW, MB |',
        '|' + '---|' * 7,
    ]
    for adaptation in adaptations:
        found = measure_memory(model, adaptation, head)
        mb = [f'{x / 1e6:.1f}' for x in (found.model, found.pair, found.heads, found.optimizer)]
        shares = [f'{x / found.model:.3f}' for x in (found.pair, found.copied)]
        lines.append(f'| {adaptation} | {mb[0]} | {mb[1]} | {shares[0]} | {shares[1]} | {mb[2]} | {mb[3]} |')
    path = out / 'memory.md'
    with atomic_path(path) as temporary:
        temporary.write_text('\n'.join([*lines, '']))
    return path
