"""DINOv2's self-distillation (Oquab et al. 2024) on an adapted backbone: D-ExPLoRA."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import torch
import torch.distributed as dist
from lightly.loss import KoLeoLoss
from torch import Tensor, nn

from explora_geo.adaptation import frozen_blocks
from explora_geo.models.heads import HeadConfig, ProjectionHead
from explora_geo.models.vit import Begun, Embedded, Features, ViT
from explora_geo.objectives.anchor import AnchorConfig, AnchorLoss
from explora_geo.objectives.base import Objective, mean_patch
from explora_geo.objectives.gram import GramConfig, GramLoss
from explora_geo.objectives.losses import TargetCentering, dino_losses, entropies, ibot_loss
from explora_geo.objectives.masking import MaskConfig, block_masks
from explora_geo.objectives.schedules import PhaseConfig, TrainingLength, rename_length
from explora_geo.objectives.teacher import Teacher, TeacherConfig
from explora_geo.transforms.multicrop import MultiCrop, ViewsConfig

_HEADS = ('dino_head', 'ibot_head')


@dataclass(frozen=True)
class LossConfig:
    """Loss settings of DINOv2.

    Attributes:
        student_temperature: Temperature of the student's predictions.
        ibot_weight: Weight of the masked-patch loss.
        koleo_weight: Weight of KoLeo, which spreads out the class tokens of a batch.
        token: Token compared between crops: the class token (DINOv2), or the mean patch token, for
            trunks whose class token is unfinished.
    """

    student_temperature: float = 0.1
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    token: Literal['cls', 'avg'] = 'cls'

    def __post_init__(self) -> None:
        """Check the token."""
        if self.token not in ('cls', 'avg'):
            raise ValueError(f'token must be cls or avg, got {self.token!r}')


class _Moved(TypedDict, total=False):
    """Arguments of earlier versions that have moved into groups."""

    student_temperature: float | None
    ibot_weight: float | None
    koleo_weight: float | None
    token: Literal['cls', 'avg'] | None
    load_heads: bool | None
    freeze_last_layer: float | None
    head_warmup: float | None


def _regroup(name: str, value: Any) -> tuple[str, dict[str, Any]]:
    """Return the group that now holds an old argument and the changes to make there; warn of it."""
    if name not in _Moved.__annotations__:
        raise TypeError(f"DINOv2 got an unexpected keyword argument '{name}'")
    if name in ('freeze_last_layer', 'head_warmup'):
        return 'phases', rename_length(name, value, 'phases.')
    group, key = ('head', 'load') if name == 'load_heads' else ('losses', name)
    warnings.warn(f'{name}: {value} is deprecated, use {group}.{key}: {value}', FutureWarning, stacklevel=3)
    return group, {key: value}


MASKS, LOSSES = MaskConfig(), LossConfig()


class DINOv2(Objective):
    """Prediction of a teacher's view of an image from other crops (DINO) and masked patches (iBOT).

    The teacher, a running average of the student with which it shares every frozen tensor, is the result
    of a run, as in DINOv2. Heads start random and train in full.
    """

    letter = 'D'
    backbone_options: ClassVar[Mapping[str, Any]] = {
        'mask_token': True,
        'dynamic_img_size': True,
        'uniform_drop_path': True,
    }
    flat_keys = frozenset(_Moved.__annotations__)

    def __init__(
        self,
        backbone: ViT,
        head: HeadConfig | None = None,
        ibot_head: HeadConfig | None = None,
        teacher: TeacherConfig | None = None,
        masks: MaskConfig = MASKS,
        losses: LossConfig = LOSSES,
        phases: PhaseConfig | None = None,
        views: ViewsConfig | None = None,
        anchor: AnchorConfig | None = None,
        gram: GramConfig | None = None,
        **moved: Unpack[_Moved],
    ) -> None:
        """Initialize a DINOv2 objective.

        In `ExPLoRATask` the preset replaces None; alone, or with `preset: null`, the defaults of the groups
        do, which suit runs of hundreds to thousands of steps.

        Args:
            backbone: Student with a mask token and support for any image size; its mask token trains if it is
                zero, that is, untrained.
            head: Sizes of the head for class tokens, and for masked tokens unless they have their own.
            ibot_head: Sizes of a separate head for masked tokens.
            teacher: Settings of the teacher.
            masks: Tokens hidden from the student.
            losses: Token to compare and loss weights.
            phases: How long the prototypes stay frozen and the heads train alone.
            views: Crops; DINOv2's, scaled to the backbone's image size, if None.
            anchor: Settings of an additional `AnchorLoss` to the source; ours, not the paper's.
            gram: Settings to preserve the source's patch similarities (DINOv3) and class tokens.
            **moved: Deprecated arguments, now in `losses`, `phases` and `head`; a warning names the new key.

        Raises:
            ValueError: If the backbone lacks a mask token, or a crop side is no multiple of the patch side.
        """
        super().__init__(backbone)
        if backbone.mask_token is None or not getattr(backbone.patch_embed, 'dynamic_img_size', True):
            raise ValueError(
                'DINOv2 masks patches and uses crops of two sizes: build the backbone with '
                'mask_token=True and dynamic_img_size=True'
            )
        groups: dict[str, Any] = {'losses': losses, 'phases': phases or PhaseConfig()}
        groups['head'] = head or HeadConfig()
        for name, value in moved.items():
            if value is not None:
                group, changes = _regroup(name, value)
                groups[group] = replace(groups[group], **changes)
        self.losses, self.phases, head = (groups[name] for name in ('losses', 'phases', 'head'))
        teacher = teacher or TeacherConfig()
        self.load_heads = head.load
        self._given_views = views
        self.views = self._fit_views(views)
        self.masks, self.targets = masks, teacher
        self.horizon = TrainingLength()
        self.koleo = KoLeoLoss()
        self.dino_head = ProjectionHead(backbone.embed_dim, head)
        self.ibot_head = ProjectionHead(backbone.embed_dim, ibot_head) if ibot_head else None
        sizes = (head.prototypes, (ibot_head or head).prototypes)
        self.assign_cls, self.assign_patches = (
            TargetCentering(size, teacher.centering, teacher.center_momentum) for size in sizes
        )
        # Student and teacher share a frozen patch embedding, so crops are embedded once.
        self._shares_embedding = not any(p.requires_grad for p in backbone.patch_embed.parameters())
        # They also share frozen blocks before any trained part, unless training augments rotations.
        varied = backbone.rope is not None and backbone.rope.varies
        self._shared_blocks = frozen_blocks(backbone) if self._shares_embedding and not varied else 0
        self.teacher = Teacher(self.student)
        self._multi_crop = MultiCrop(self.views, backbone.patch_embed.bands)
        # Anchor and Gram loss share one frozen source.
        source = Teacher(nn.ModuleDict({'backbone': backbone})) if anchor or gram else None
        self.anchor = AnchorLoss(source, anchor) if source and anchor else None
        self.gram = GramLoss(source, gram) if source and gram else None

    def cap_views(self, largest: int) -> None:
        """Cap default crop sizes at the image size, in whole patches."""
        self.views = self._fit_views(self._given_views, largest)
        self._multi_crop = MultiCrop(self.views, self.backbone.patch_embed.bands)

    def _fit_views(self, views: ViewsConfig | None, largest: int | None = None) -> ViewsConfig:
        tokenizer = self.backbone.patch_embed
        size = tokenizer.patch_size
        side = tokenizer.grid_size[0]
        if largest is not None:
            side = min(side, max(2, largest // size))
        views = (views or ViewsConfig()).sized(side * size, size)
        assert views.global_size is not None and views.local_size is not None
        if views.global_size % size or (views.num_local and views.local_size % size):
            raise ValueError(
                f'crop sides must be multiples of the patch size {size}, got {views.global_size} and '
                f'{views.local_size} pixels: set views.global_size and views.local_size'
            )
        return views

    @property
    def student(self) -> nn.ModuleDict:
        """Backbone and heads, in the teacher's layout."""
        parts: dict[str, nn.Module] = {'backbone': self.backbone, 'dino_head': self.dino_head}
        return nn.ModuleDict(parts if self.ibot_head is None else {**parts, 'ibot_head': self.ibot_head})

    @property
    def final_backbone(self) -> ViT:
        """The teacher's backbone: DINOv2 and ExPLoRA release the teacher."""
        return self.teacher.parts['backbone']  # type: ignore[return-value]

    def load_pretrained(self, parts: Mapping[str, Tensor]) -> str:
        """Load the checkpoint's heads if their sizes match; otherwise heads start random."""
        taken = []
        for name in _HEADS:
            state = {k.removeprefix(f'{name}.'): v for k, v in parts.items() if k.startswith(f'{name}.')}
            head = getattr(self, name)
            own = {} if head is None else {k: v.shape for k, v in head.state_dict().items()}
            if self.load_heads and state and own == {k: v.shape for k, v in state.items()}:
                head.load_state_dict(state)
                self.teacher.parts[name].load_state_dict(state)
                taken.append(name)
        return f'{" and ".join(taken)} loaded' if taken else 'the heads start random and train in full'

    def extra_state(self) -> dict[str, Tensor]:
        """Return the teacher's heads."""
        state = self.teacher.parts.state_dict()
        return {k: v for k, v in state.items() if k.startswith(_HEADS)}

    def set_schedule(self, total: int, epoch: float) -> None:
        """Set the total number of steps for the schedules."""
        self.horizon = TrainingLength(max(total, 1), epoch)
        self.horizon.check(self.targets.warmup_length, 'the temperature never reaches final_temperature')
        self.horizon.check(self.phases.freeze_last_layer, 'the prototypes never train')
        self.horizon.check(self.phases.head_warmup, 'the backbone never trains')

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch; see `Objective.forward`.

        Args:
            batch: Sample dict with `views`, the output of `MultiCrop`, or with `image`, shape
                (B, C, H, W), from which views are drawn here (only global ones in validation); and
                `timestamps` if the tokenizer reads them.
            step: Optimizer steps done so far.
        """
        if 'views' in batch:
            views = batch['views']
        else:
            views = self._multi_crop(batch['image'], local=self.training)
        crops, local = views[0], views[1] if len(views) > 1 else None
        times, config = batch.get('timestamps'), self.losses
        images = len(crops) // 2
        embedded = self.backbone.patch_embed(crops)
        tokens, grid = embedded
        mask = block_masks(len(crops), grid, tokens.shape[1], **vars(self.masks))
        # Masked rows are found on the CPU: a boolean mask would synchronize with the device.
        rows = mask.flatten().nonzero().squeeze(1).to(crops.device)
        begun = self._begin(crops, embedded, times)
        targets, of_patches = self._teacher_targets(crops, embedded, rows, times, step, begun)

        learning = torch.is_grad_enabled() and not self._warming_up(step)
        with torch.set_grad_enabled(learning):
            features = self.backbone(
                crops,
                timestamps=_repeat(times, 2),
                token_mask=mask.to(crops.device),
                embedded=embedded,
                begun=None if begun is None else self._mask_begun(begun, crops, embedded, mask, times),
            )
        prototypes = self.dino_head.last_layer.weight()
        # The patch loss comes first so that the memory of its targets is free for the local crops.
        loss_ibot = None
        if of_patches is not None:
            masked = features.patches.flatten(0, 2)[rows]
            logits = self.ibot_head(masked) if self.ibot_head else self.dino_head(masked, prototypes)
            with torch.autocast(crops.device.type, enabled=False):
                loss_ibot = ibot_loss(of_patches, logits, mask, config.student_temperature)
            del of_patches, logits
        cls = [self.pool(features)]
        if local is not None:
            count = len(local) // images
            with torch.set_grad_enabled(learning):
                cls.append(self.pool(self.backbone(local, timestamps=_repeat(times, count))))
        dino = self.dino_head(torch.cat(cls), prototypes)
        with torch.autocast(crops.device.type, enabled=False):
            dino = dino.unflatten(0, (-1, images))  # (2·B + n·B,K) -> (2 + n,B,K)
            loss_global, loss_local = dino_losses(
                targets, dino[:2], dino[2:] if local is not None else None, config.student_temperature
            )
            losses = {'loss_dino_global': loss_global}
            if loss_local is not None:
                losses['loss_dino_local'] = loss_local
            if loss_ibot is not None:
                losses['loss_ibot'] = config.ibot_weight * loss_ibot
            if config.koleo_weight and images > 1:  # a single image has no neighbor
                spread = [self.koleo(x) for x in cls[0].float().chunk(2)]
                losses['loss_koleo'] = config.koleo_weight * torch.stack(spread).sum()
        if self.gram is not None:
            losses |= self.gram(crops, features, times, step, self.horizon)
        if self.anchor is not None:
            losses |= self.anchor(self.backbone, batch, step)[0]
            self.metrics |= self.anchor.metrics
        return losses

    @torch.no_grad()
    def _begin(self, crops: Tensor, embedded: Embedded, times: Tensor | None) -> Begun | None:
        """Run the blocks that student and teacher share, once for both; return None if they share none."""
        count = self._shared_blocks
        if not count:
            return None
        return self.final_backbone.begin(crops, count, timestamps=_repeat(times, 2), embedded=embedded)

    def _mask_begun(
        self, begun: Begun, crops: Tensor, embedded: Embedded, mask: Tensor, times: Tensor | None
    ) -> Begun:
        """Return `begun` with the images that have masked tokens rerun through the shared blocks."""
        hidden = mask.flatten(1).any(1).nonzero().squeeze(1).to(crops.device)
        if not len(hidden):
            return begun
        repeated = _repeat(times, 2)
        anew = self.backbone.begin(
            crops[hidden],
            begun.blocks,
            timestamps=None if repeated is None else repeated[hidden],
            token_mask=mask.to(crops.device)[hidden],
            embedded=(embedded[0][hidden], embedded[1]),
        )
        return begun._replace(x=begun.x.index_copy(0, hidden, anew.x.to(begun.x.dtype)))

    def pool(self, features: Features) -> Tensor:  # type: ignore[override]
        """Return the token compared between crops, class token or mean patch token, shape (B, D)."""
        return features.cls if self.losses.token == 'cls' else mean_patch(features)

    @torch.no_grad()
    def _teacher_targets(
        self,
        crops: Tensor,
        embedded: Embedded,
        rows: Tensor,
        times: Tensor | None,
        step: int,
        begun: Begun | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the teacher's targets for the global crops, shape (2·B, C, H, W).

        Returns:
            Probabilities of the class tokens by crop, shape (2, B, K), and of the M tokens in `rows`, shape
            (M, K), or None if there are none.
        """
        parts = self.teacher.parts.eval()  # only the student drops paths
        teacher: ViT = self.final_backbone
        features = teacher(
            crops,
            timestamps=_repeat(times, 2),
            embedded=embedded if self._shares_embedding else None,
            begun=begun,
        )
        pooled, masked = self.pool(features), features.patches.flatten(0, 2)[rows]
        if 'ibot_head' in parts:
            cls, patches = parts['dino_head'](pooled), parts['ibot_head'](masked)
        else:  # one call for both
            both = parts['dino_head'](torch.cat([pooled, masked]))
            cls, patches = both.split([len(crops), len(rows)])
        config = self.targets
        temperature = self.horizon.linear_warmup(
            step, config.temperature, config.final_temperature, config.warmup_length
        )
        with torch.autocast(crops.device.type, enabled=False):
            probabilities = self.assign_cls(cls, temperature)
            # Other processes may have masked tokens and would wait for this one.
            some = len(rows) or dist.is_initialized()
            found = self.assign_patches(patches, temperature) if some else None
            sharp, spread = entropies(probabilities)
        self.metrics = {'teacher_entropy': sharp, 'teacher_usage': spread}
        if self.training:
            self.watched = pooled
            self.usage = spread if self.usage is None else self.usage.lerp(spread, 0.1)
        return probabilities.unflatten(0, (2, -1)), found

    def _warming_up(self, step: int) -> bool:
        """Return whether the backbone needs no gradients; distributed training needs all of them."""
        waiting = step < self.horizon.steps(self.phases.head_warmup)
        return self.training and not dist.is_initialized() and waiting

    @property
    def clipped(self) -> Sequence[nn.Module]:
        """Backbone and heads, clipped by separate norms as in DINOv2's code."""
        return [self.backbone, *(head for head in (self.dino_head, self.ibot_head) if head is not None)]

    def before_step(self, step: int) -> None:
        """Drop the gradients of parts that do not train yet."""
        if step < self.horizon.steps(self.phases.freeze_last_layer):
            for head in (self.dino_head, self.ibot_head):
                if head is not None:
                    for parameter in head.last_layer.parameters():
                        parameter.grad = None
        if step < self.horizon.steps(self.phases.head_warmup):
            for parameter in self.backbone.parameters():
                parameter.grad = None

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student."""
        start = self.targets.momentum_of(self.horizon.total)
        self.teacher.update(self.student, self.horizon.cosine(step - 1, start, 1.0))


def _repeat(times: Tensor | None, count: int) -> Tensor | None:
    return None if times is None else times.repeat(count, 1, 1)
