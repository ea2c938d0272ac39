"""The contract between an objective and the task that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from explora_geo.models.vit import Features, ViT
from explora_geo.transforms.multicrop import ViewsConfig


def mean_patch(features: Features) -> Tensor:
    """Mean patch token over all slots, shape (B, D), for objectives that move patches alone."""
    return features.patches.flatten(1, -2).mean(dim=1)


class Objective(nn.Module, ABC):
    """A self-supervised loss on one adapted backbone, with the parts that only pre-training needs.

    Attributes:
        backbone: The ViT that is trained and later kept.
        letter: How the paper's notation names weights of this objective (`M`, `D`).
        backbone_options: Arguments of `create_vit` that the objective needs.
        flat_keys: Arguments that the class takes beside those of its signature.
        views: Crops that the objective learns from, or None for the image itself.
        metrics: Numbers of the last batch that are worth a look but not minimised, by name.
        watched: Features of the last training batch in which a collapse would show, shape (N, D), or None.
        usage: How evenly the last training batches use all targets, from 0 for a single one to 1, or None.
    """

    letter: str = ''
    backbone_options: ClassVar[Mapping[str, Any]] = {}
    flat_keys: ClassVar[frozenset[str]] = frozenset()
    views: ViewsConfig | None = None

    def __init__(self, backbone: ViT) -> None:
        """Initialize an Objective around a backbone that carries its weights and adaptation."""
        super().__init__()
        self.backbone = backbone
        self.metrics: dict[str, Tensor] = {}
        self.watched: Tensor | None = None
        self.usage: Tensor | None = None

    @property
    def final_backbone(self) -> ViT:
        """The backbone that a run leaves behind: the trained one, unless the objective says otherwise."""
        return self.backbone

    def load_pretrained(self, parts: Mapping[str, Tensor]) -> str:
        """Take the objective's own pre-trained parts (a decoder, heads) from a checkpoint.

        Args:
            parts: Tensors of the checkpoint that are not the backbone's.

        Returns:
            One sentence that says what was taken.
        """
        return 'the objective has no pre-trained parts'

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: Sample dict with `image`, shape (B, C, H, W), and for temporal tokenizers
                `timestamps`, shape (B, T, 3); labels are never read.
            step: Optimizer steps done so far, for schedules.

        Returns:
            Scalar losses by name; their sum is minimised.
        """

    @staticmethod
    def pool(features: Features) -> Tensor:
        """One vector per image that suits the objective: the class token, shape (B, D)."""
        return features.cls

    def extra_state(self) -> dict[str, Tensor]:
        """The objective's own tensors that `load_pretrained` reads back."""
        return {}

    def pictures(self, image: Tensor, timestamps: Tensor | None = None) -> dict[str, Tensor]:
        """Images that show what the objective does, by title, each of the input's shape; or none."""
        return {}

    def set_schedule(self, total: int, epoch: float) -> None:
        """Set the total number of steps, for schedules; nothing by default.

        Args:
            total: Optimizer steps of the whole run.
            epoch: Optimizer steps per epoch.
        """

    def cap_views(self, largest: int) -> None:
        """Keep crops that were not given from being larger than the images; nothing without crops.

        Args:
            largest: Side of the images, pixels.
        """

    @property
    def clipped(self) -> Sequence[nn.Module]:
        """Modules whose gradients are clipped each by its own norm: the whole objective."""
        return [self]

    def before_step(self, step: int) -> None:
        """Act on gradients before an optimizer step; nothing by default."""

    def after_step(self, step: int) -> None:
        """Act after an optimizer step, for instance average a teacher; nothing by default."""


def objective_class(factory: Callable[..., Any]) -> type[Objective] | None:
    """The objective that a factory builds, as far as it can be told.

    Args:
        factory: A class, or a partial of one; command lines wrap the class as an argument of a partial.

    Returns:
        The class, or None for other callables.
    """
    if isinstance(factory, type) and issubclass(factory, Objective):
        return factory
    inner = (factory.func, *factory.args) if isinstance(factory, partial) else ()
    return next((found for x in inner if callable(x) and (found := objective_class(x))), None)
