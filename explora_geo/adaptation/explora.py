"""ExPLoRA: select the few percent of a pre-trained transformer that train on a new domain (section 4)."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from torch import nn

from explora_geo.adaptation.frozen import FrozenLinear
from explora_geo.adaptation.lora import LoRALinear

_TARGETS = ('q', 'k', 'v', 'proj', 'fc1', 'fc2')
_NOTATION = re.compile(
    r'(?:(?P<prefix>DINOv2|MAE|D|M)-)?(?:ExPLoRA-)?\[(?P<blocks>[^\]]*)\](?:-r(?P<rank>\d+))?'
    r'(?:@(?P<last>[1-9]\d*))?'
)
_BLOCK = re.compile(r'(?P<first>[1-9]\d*)|L(?:-(?P<before>\d+))?')


@dataclass(frozen=True)
class ExPLoRAConfig:
    """Trainable parts of a transformer whose other weights stay frozen.

    Attributes:
        unfrozen_blocks: The set U of blocks trained in full, as Python indices (0 the first, -1 the
            last), or `'all'` for full pre-training, which leaves everything trainable.
        rank: Rank r of LoRA in the blocks outside U; 0 for no LoRA.
        alpha: LoRA's alpha; updates are scaled by alpha / r. None means alpha = r, scale 1. The
            released ExPLoRA code uses 1.
        dropout: Dropout on the input of LoRA updates.
        targets: Matrices that get LoRA: the paper's `('q', 'v')`, or any of q, k, v, proj, fc1, fc2.
        mlp_rank_ratio: Ratio of the LoRA rank on fc1 and fc2, if they are targets, to the rank elsewhere;
            the released ExPLoRA code uses 0.25.
        rank_stabilized: Scale updates by alpha / sqrt(r) instead (Kalajdzievski 2023), if alpha is given.
        last_blocks: Adapt only the last k blocks (ours, not the paper's); earlier blocks and the class
            token stay frozen and need no gradient. All blocks if None.
        train_norms: Train the norms of all blocks and the final norm.
        train_cls_token: Train the class token.
        extra: Names of further parameters or modules to train, such as `patch_embed`.
    """

    unfrozen_blocks: tuple[int, ...] | Literal['all'] = (-1,)
    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ('q', 'v')
    train_norms: bool = True
    train_cls_token: bool = True
    extra: tuple[str, ...] = ()
    mlp_rank_ratio: float = 1.0
    rank_stabilized: bool = False
    last_blocks: int | None = None

    def __post_init__(self) -> None:
        """Check the values that do not depend on a model."""
        for field in ('unfrozen_blocks', 'targets', 'extra'):  # YAML and JSON give lists or a single name
            value = getattr(self, field)
            if isinstance(value, Iterable) and not isinstance(value, str):
                object.__setattr__(self, field, tuple(value))
            elif field != 'unfrozen_blocks':
                object.__setattr__(self, field, (value,))
        blocks = self.unfrozen_blocks
        if not self.full and not (isinstance(blocks, tuple) and all(type(i) is int for i in blocks)):
            raise ValueError(f"unfrozen_blocks must be indices or 'all', got {blocks!r}")
        if type(self.rank) is not int or self.rank < 0:
            raise ValueError(f'rank must be 0 (no LoRA) or more, got {self.rank!r}')
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f'alpha must be positive, got {self.alpha}')
        if not 0 <= self.dropout < 1:
            raise ValueError(f'dropout must be in [0, 1), got {self.dropout}')
        if not 0 < self.mlp_rank_ratio <= 1:
            raise ValueError(f'mlp_rank_ratio must be in (0, 1], got {self.mlp_rank_ratio}')
        if self.last_blocks is not None and (self.full or self.last_blocks < 1):
            raise ValueError(f'last_blocks must be 1 or more, and unset for full, got {self.last_blocks}')
        if unknown := [name for name in self.targets if name not in _TARGETS]:
            raise ValueError(f'targets must be among {_TARGETS}, got {unknown}')

    @property
    def scale(self) -> float:
        """Scale of LoRA updates, alpha / r; 1 without LoRA."""
        return self.scale_of(self.rank)

    def scale_of(self, rank: int) -> float:
        """Return the scale of LoRA updates of this rank."""
        if self.alpha is None or not rank:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    @property
    def full(self) -> bool:
        """Whether everything trains."""
        return self.unfrozen_blocks == 'all'

    @classmethod
    def parse(cls, notation: str, **changes: Any) -> Self:
        """Parse the paper's notation; `changes` set other fields, such as `alpha=1`.

        Examples are `D-ExPLoRA-[L]-r32`, `M-ExPLoRA-[1,L]-r32`, `[L-1,L]` (no LoRA), `[]-r256` (LoRA only),
        `[L]-r32@12` (last 12 blocks only) and `full`. Blocks count from 1; L is the last. The leading D or M
        names the objective, which is not part of the configuration. Other text raises ValueError.
        """
        if notation.strip().lower() == 'full':
            return cls(unfrozen_blocks='all', rank=0, **changes)
        match = _NOTATION.fullmatch(notation.strip())
        names = [b.strip() for b in match['blocks'].split(',') if b.strip()] if match else []
        blocks = [_BLOCK.fullmatch(name) for name in names]
        if match is None or None in blocks:
            raise ValueError(
                f'cannot parse notation {notation!r}: use D-ExPLoRA-[L]-r32, M-ExPLoRA-[1,L]-r32 (blocks '
                'count from 1, L is the last) or full'
            )
        unfrozen = tuple(
            int(b['first']) - 1 if b['first'] else -1 - int(b['before'] or 0) for b in blocks if b
        )
        changes = {'last_blocks': int(match['last']), **changes} if match['last'] else changes
        return cls(unfrozen_blocks=unfrozen, rank=int(match['rank'] or 0), **changes)

    def notation(self, prefix: str = '') -> str:
        """Return the paper's notation, which `parse` reads; `prefix` is `D` or `M` to name an objective."""
        if self.full:
            return 'full'
        blocks = f'[{",".join(map(_spell, self.unfrozen_blocks))}]' + (f'-r{self.rank}' if self.rank else '')
        blocks += f'@{self.last_blocks}' if self.last_blocks else ''
        return f'{prefix}-ExPLoRA-{blocks}' if prefix else blocks

    @classmethod
    def create(cls, value: 'ExPLoRAConfig | Mapping[str, Any] | str') -> 'ExPLoRAConfig':
        """Create a configuration from another one, a mapping of fields, or the paper's notation."""
        if isinstance(value, ExPLoRAConfig):
            return value
        return cls.parse(value) if isinstance(value, str) else cls(**value)

    def with_extra(self, names: Iterable[str]) -> Self:
        """Return a copy of the configuration that also trains these parts."""
        new = tuple(name for name in names if name not in self.extra)
        return self if self.full or not new else replace(self, extra=(*self.extra, *new))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _spell(index: Any) -> str:
    """Spell a block index as in the notation: from 1, or back from L, the last."""
    return str(index + 1) if index >= 0 else 'L' if index == -1 else f'L{index + 1}'


def notation_objective(notation: str) -> str:
    """Return the objective in the paper's notation: `D`, `M`, or an empty string."""
    match = _NOTATION.fullmatch(notation.strip())
    return (match['prefix'] or '')[:1] if match else ''


def explora(model: nn.Module, config: ExPLoRAConfig) -> nn.Module:
    """Adapt a transformer in place and return it: steps (ii) and (iii) of section 4.

    Freeze everything, unfreeze the blocks of U, and add LoRA to the target matrices of all other blocks.
    Norms, class token, the named extras and a mask token without loaded weights train too. With
    `last_blocks`, earlier blocks and the class token stay frozen, and these blocks drop no paths. With
    `full` everything trains. Any previous `requires_grad` is overwritten. The output does not change.

    Args:
        model: Any module with `blocks` in timm's layout and a final `norm`, such as a `ViT` or `MAEDecoder`.
        config: What to train.

    Raises:
        ValueError: If a block or an extra does not exist, or the model is already adapted.
    """
    if any(isinstance(layer, LoRALinear) for layer in model.modules()):
        raise ValueError('the model already contains LoRA: merge it before adapting again')
    if config.full:
        return model.requires_grad_(True)
    blocks: Any = model.blocks
    unfrozen, first = _chosen_blocks(config, len(blocks))
    model.requires_grad_(False)
    for i, block in enumerate(blocks):
        if i in unfrozen:
            block.requires_grad_(True)
        elif i < first:  # identical in training and evaluation
            block.drop_path1 = block.drop_path2 = nn.Identity()
        elif config.rank:
            _add_lora(block, config)
    if config.train_norms:
        rest = {id(module) for module in blocks[:first].modules()}
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) and id(module) not in rest:
                module.requires_grad_(True)
    named = dict(model.named_parameters())
    if config.train_cls_token and not first and 'cls_token' in named:
        named['cls_token'].requires_grad_(True)
    for extra in config.extra:
        chosen = [p for n, p in named.items() if n == extra or n.startswith(f'{extra}.')]
        if not chosen:
            tops = ', '.join(sorted({n.split('.')[0] for n in named}))
            raise ValueError(f'extra {extra!r} not found in the model, which contains {tops}')
        for parameter in chosen:
            parameter.requires_grad_(True)
    token = named.get('mask_token')
    if token is not None and not token.is_meta and not token.any():
        token.requires_grad_(True)
    for parent in list(blocks.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and not layer.weight.requires_grad:
                setattr(parent, name, FrozenLinear(layer))
    return model


def _chosen_blocks(config: ExPLoRAConfig, depth: int) -> tuple[set[int], int]:
    """Return the indices of the blocks that train in full, and of the first adapted block."""
    indices: Any = config.unfrozen_blocks
    if wrong := [i for i in indices if not -depth <= i < depth]:
        shown = ', '.join(map(_spell, wrong))
        raise ValueError(f'block {shown} does not exist: the model has blocks 1 to L = {depth}')
    unfrozen = {i % depth for i in indices}
    first = max(0, depth - (config.last_blocks or depth))
    if min(unfrozen, default=depth) < first:
        raise ValueError(
            f'block {min(unfrozen) + 1} cannot train if only the last {config.last_blocks} of {depth} blocks '
            'are adapted: raise last_blocks or leave the block out'
        )
    return unfrozen, first


def frozen_blocks(model: nn.Module) -> int:
    """Count the leading blocks of an adapted ViT in and before which nothing trains.

    The mask token is ignored, as unmasked images do not use it.
    """
    before = (p for n, p in model.named_parameters() if not n.startswith(('blocks.', 'norm.', 'mask_token')))
    if any(p.requires_grad for p in before):
        return 0
    trains = [any(p.requires_grad for p in block.parameters()) for block in model.blocks]  # type: ignore[union-attr]
    return trains.index(True) if True in trains else len(trains)


def _add_lora(block: Any, config: ExPLoRAConfig) -> None:
    """Replace the target matrices of a block with LoRA layers."""
    for name, parent in (('qkv', block.attn), ('proj', block.attn), ('fc1', block.mlp), ('fc2', block.mlp)):
        layer = getattr(parent, name)
        slices = {'all': (0, layer.out_features)} if name in config.targets else {}
        if name == 'qkv':
            third = layer.out_features // 3
            slices = {n: (i * third, (i + 1) * third) for i, n in enumerate('qkv') if n in config.targets}
        if slices:
            rank = max(1, round(config.rank * (config.mlp_rank_ratio if parent is block.mlp else 1)))
            alpha = rank * config.scale_of(rank)
            setattr(parent, name, LoRALinear(layer, slices, rank, alpha, config.dropout))


def trainable_names(model: nn.Module) -> list[str]:
    """Return the names of the trainable parameters, in the model's order."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


def trainable_summary(model: nn.Module) -> dict[str, int]:
    """Count the trainable parameters by the parts that the paper lists.

    Returns:
        Parameters per part (`unfrozen block 24`, `LoRA`, `norms`, `cls_token`, other top-level names), in
        that order; their sum is the number of trainable parameters.
    """
    blocks: Any = model.blocks
    whole = {i for i, block in enumerate(blocks) if all(p.requires_grad for p in block.parameters())}
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path = name.split('.')
        if 'lora_a' in path or 'lora_b' in path:
            part = 'LoRA'
        elif path[0] == 'blocks' and int(path[1]) in whole:
            part = f'unfrozen block {int(path[1]) + 1}'
        elif any(key.startswith('norm') for key in path):
            part = 'norms'
        else:
            part = path[0]
        counts[part] += parameter.numel()
    order = {'LoRA': 1, 'norms': 2, 'cls_token': 3}
    return dict(sorted(counts.items(), key=lambda row: 0 if 'block' in row[0] else order.get(row[0], 4)))
