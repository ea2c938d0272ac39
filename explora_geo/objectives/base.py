"""Interface between an objective and the task that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from explora_geo.models.vit import Features, ViT
from explora_geo.transforms.multicrop import ViewsConfig


def mean_patch(features: Features) -> Tensor:
    """Return the mean patch token over all slots, shape (B, D), for objectives that train only patches."""
    return features.patches.flatten(1, -2).mean(dim=1)


class Objective(nn.Module, ABC):
    """Self-supervised loss on an adapted backbone, with the parts needed only in pre-training.

    Attributes:
        backbone: The ViT that is trained and kept.
        letter: Letter for this objective in the paper's notation (`M`, `D`).
        backbone_options: Arguments of `create_vit` that the objective needs.
        flat_keys: Arguments that the class takes beyond its signature.
        views: Crops that the objective learns from, or None for the image itself.
        metrics: Values of the last batch to monitor but not minimize, by name.
        watched: Features of the last training batch to check for collapse, shape (N, D), or None.
        usage: How evenly recent training batches use the targets, from 0 (only one) to 1, or None.
    """

    letter: str = ''
    backbone_options: ClassVar[Mapping[str, Any]] = {}
    flat_keys: ClassVar[frozenset[str]] = frozenset()
    views: ViewsConfig | None = None

    def __init__(self, backbone: ViT) -> None:
        """Initialize an Objective on a backbone with its weights and adaptation."""
        super().__init__()
        self.backbone = backbone
        self.metrics: dict[str, Tensor] = {}
        self.watched: Tensor | None = None
        self.usage: Tensor | None = None

    @property
    def final_backbone(self) -> ViT:
        """The backbone to keep after a run: the trained one by default."""
        return self.backbone

    def load_pretrained(self, parts: Mapping[str, Tensor]) -> str:
        """Load the objective's own pre-trained parts (a decoder, heads) from a checkpoint.

        Args:
            parts: Checkpoint tensors that do not belong to the backbone.

        Returns:
            A one-sentence description of what was loaded.
        """
        return 'the objective has no pre-trained parts'

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: Sample dict with `image`, shape (B, C, H, W), and for temporal tokenizers
                `timestamps`, shape (B, T, 3); labels are never read.
            step: Optimizer steps done so far, for schedules.

        Returns:
            Scalar losses by name; their sum is minimized.
        """

    @staticmethod
    def pool(features: Features) -> Tensor:
        """Return one vector per image, shape (B, D): by default the class token."""
        return features.cls

    def extra_state(self) -> dict[str, Tensor]:
        """Return the objective's own tensors, which `load_pretrained` reads back."""
        return {}

    def pictures(self, image: Tensor, timestamps: Tensor | None = None) -> dict[str, Tensor]:
        """Return images that illustrate the objective, by title, in the input's shape; none by default."""
        return {}

    def set_schedule(self, total: int, epoch: float) -> None:
        """Set the total number of steps for schedules; does nothing by default.

        Args:
            total: Optimizer steps of the whole run.
            epoch: Optimizer steps per epoch.
        """

    def cap_views(self, largest: int) -> None:
        """Cap default crop sizes at the image size; does nothing without crops.

        Args:
            largest: Side of the images, pixels.
        """

    @property
    def clipped(self) -> Sequence[nn.Module]:
        """Modules whose gradients are clipped by separate norms: by default one, the whole objective."""
        return [self]

    def before_step(self, step: int) -> None:
        """Modify gradients before an optimizer step; does nothing by default."""

    def after_step(self, step: int) -> None:
        """Run after an optimizer step, for instance to update a teacher; does nothing by default."""


def objective_class(factory: Callable[..., Any]) -> type[Objective] | None:
    """Return the objective class that a factory builds, if known.

    Args:
        factory: A class or a partial of one; the command line passes the class as an argument of a partial.

    Returns:
        The class, or None for other callables.
    """
    if isinstance(factory, type) and issubclass(factory, Objective):
        return factory
    inner = (factory.func, *factory.args) if isinstance(factory, partial) else ()
    return next((found for x in inner if callable(x) and (found := objective_class(x))), None)
