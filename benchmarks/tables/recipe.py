"""Pre-training recipe of a row: adaptation, objective and length."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.models.heads import HeadConfig
from explora_geo.models.vit import ViT
from explora_geo.objectives import (
    MAE,
    Anchor,
    AnchorConfig,
    DINOv2,
    GramConfig,
    LossConfig,
    MaskConfig,
    Objective,
    PatchAlignment,
    PhaseConfig,
    TeacherConfig,
)
from explora_geo.trainers.optim import OptimConfig
from explora_geo.transforms import ViewsConfig

from .files import make

OBJECTIVES: dict[str, type[Objective]] = {
    kind.__name__: kind for kind in (MAE, DINOv2, Anchor, PatchAlignment)
}
_GROUPS: dict[str, Any] = {
    'head': HeadConfig,
    'ibot_head': HeadConfig,
    'teacher': TeacherConfig,
    'phases': PhaseConfig,
    'masks': MaskConfig,
    'losses': LossConfig,
    'views': ViewsConfig,
    'anchor': AnchorConfig,
    'gram': GramConfig,
}
_LATER = ('last_blocks', 'rank_stabilized')  # added after the committed stages, whose names lack them


@dataclass(frozen=True)
class Recipe:
    """Pre-training recipe of a row."""

    adaptation: ExPLoRAConfig  # what trains
    optim: OptimConfig  # optimizer and schedule
    steps: int  # optimizer steps
    objective: str = 'MAE'  # key of `OBJECTIVES`
    arguments: Mapping[str, Any] = field(default_factory=dict)  # its arguments, nested by group
    batch_size: int = 128  # images per step
    drop_path_rate: float = 0.0  # stochastic depth in training

    @property
    def name(self) -> str:
        """The adaptation in the paper's notation."""
        return self.adaptation.notation(OBJECTIVES[self.objective].letter)

    @property
    def factory(self) -> Callable[[ViT], Objective]:
        """Factory that builds the objective around a backbone."""
        kind = OBJECTIVES[self.objective]
        try:
            arguments = {k: _GROUPS[k](**v) if k in _GROUPS else v for k, v in self.arguments.items()}
            if unknown := arguments.keys() - inspect.signature(kind).parameters.keys() - kind.flat_keys:
                raise TypeError(f"got an unexpected keyword argument '{min(unknown)}'")
        except TypeError as error:
            raise ValueError(f'{self.objective} does not accept {dict(self.arguments)}: {error}') from error
        return partial(kind, **arguments)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, which are hashed into the names of finished stages."""
        return {
            'objective': self.objective,
            'steps': self.steps,
            'batch_size': self.batch_size,
            'crop_scale': (0.2, 1.0),  # no effect, but part of the names of the committed stages
            'drop_path_rate': self.drop_path_rate,
            'arguments': {k: plain_value(v) for k, v in self.arguments.items()},
            'adaptation': {k: v for k, v in self.adaptation.to_dict().items() if v or k not in _LATER},
            'optim': dict(vars(self.optim)),
        }


def read_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Build a recipe from flat values: fields of `Recipe` and `OptimConfig`.

    The adaptation is given in the paper's notation or as fields of `ExPLoRAConfig`.
    """
    names = {f.name for f in fields(OptimConfig)}
    given = {k: v for k, v in values.items() if k not in names}
    given['adaptation'] = ExPLoRAConfig.create(values['adaptation'])
    optim = make(OptimConfig, {k: v for k, v in values.items() if k in names}, where)
    recipe: Recipe = make(Recipe, {**given, 'optim': optim}, where)
    try:
        _ = recipe.factory  # checks the objective's arguments before anything runs
    except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
    return recipe


def plain_value(value: Any) -> Any:
    """Convert a value from a file to JSON-ready values."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {k: plain_value(v) for k, v in value.items()}
    return [plain_value(v) for v in value] if isinstance(value, list | tuple) else value
