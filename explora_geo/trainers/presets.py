"""The published recipes (workshop text, appendix D; released scripts) as data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from explora_geo._compat import WeightsEnum
from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.adaptation.explora import notation_objective
from explora_geo.checkpoints.convert import convert
from explora_geo.checkpoints.sources import read_weights
from explora_geo.models.heads import HeadConfig
from explora_geo.models.vit import ViT
from explora_geo.models.weights import entry_meta, find_weights
from explora_geo.objectives import MAE, DINOv2, Objective, PhaseConfig, TeacherConfig, objective_class
from explora_geo.trainers.optim import OptimConfig
from explora_geo.transforms import ViewsConfig


@dataclass(frozen=True)
class Preset:
    """A published recipe."""

    adaptation: ExPLoRAConfig  # trainable parts of the backbone
    optim: OptimConfig  # optimizer and schedule
    batch: int  # effective batch size, reached by gradient accumulation
    epochs: int | None = None  # length in epochs, or None if given in steps
    steps: int | None = None  # length in optimizer steps, or None
    objective: Mapping[str, Any] = field(default_factory=dict)  # arguments of the objective
    drop_path_rate: float = 0.0  # stochastic depth of the student
    gradient_clip: float | None = None  # maximum gradient norm, the trainer's `gradient_clip_val`

    def over(self, steps: int) -> 'Preset':
        """Return the recipe for another number of steps, with all lengths in steps scaled in proportion."""
        if not self.steps:
            return replace(self, steps=steps)

        def resized(config: Any) -> Any:
            old = vars(config) if is_dataclass(config) else {}
            lengths = {k: v for k, v in old.items() if k.endswith('_steps') and v}
            return replace(config, **{k: round(v * share) for k, v in lengths.items()}) if lengths else config

        share = steps / self.steps
        objective = {k: resized(v) for k, v in self.objective.items()}
        return replace(self, steps=steps, optim=resized(self.optim), objective=objective)


#: Objectives with recipes, by the first letter of the paper's notation.
OBJECTIVES: dict[str, type[Objective]] = {'M': MAE, 'D': DINOv2}

# The released code scales LoRA by alpha / r with alpha = 1, and gives MLP matrices, if targeted,
# a quarter of the rank.
_RELEASED: dict[str, Any] = {'alpha': 1.0, 'mlp_rank_ratio': 0.25}


# DINOv2's crops as in its code, and a variant with only the horizontal flip.
_VIEWS = ViewsConfig(blur=(0.0, 0.9, 0.5), blur_sigma=(0.1, 2.0))
_FLIPPED = replace(_VIEWS, vertical_flip=False, quarter_turns=False)


def _mae(adaptation: str, base_lr: float, epochs: int, decoder_rank: int, **changes: Any) -> Preset:
    # In the decoder, LoRA and norms train; mask token, embedding and prediction stay frozen.
    decoder = ExPLoRAConfig(unfrozen_blocks=(), rank=decoder_rank, **changes)
    return Preset(
        ExPLoRAConfig.parse(adaptation, **changes),
        OptimConfig(base_lr=base_lr, lr_scaling='linear', betas=(0.9, 0.95), warmup_epochs=1),
        batch=1024,
        epochs=epochs,
        objective={'mask_ratio': 0.75, 'norm_pix_loss': True, 'decoder_adaptation': decoder},
    )


def _dinov2(
    adaptation: str,
    base_lr: float,
    batch: int,
    steps: int,
    epoch: int,
    freeze: int,
    views: ViewsConfig,
    **changes: Any,
) -> Preset:
    """Build a recipe with DINOv2's defaults where the sources are silent; its epochs are `epoch` steps."""
    return Preset(
        ExPLoRAConfig.parse(adaptation, **changes),
        OptimConfig(
            base_lr=base_lr,
            lr_scaling='sqrt',
            betas=(0.9, 0.999),
            warmup_steps=10 * epoch,
            min_lr=1e-6,
            layer_decay=0.9,
            patch_embed_lr_multiplier=0.2,
        ),
        batch=batch,
        steps=steps,
        objective={
            'head': HeadConfig(
                prototypes=65536, hidden_dim=2048, bottleneck_dim=256, num_layers=3, train_gain=True
            ),
            'teacher': TeacherConfig(
                momentum=0.992, temperature=0.04, final_temperature=0.07, temperature_warmup_steps=30 * epoch
            ),
            'phases': PhaseConfig(freeze_last_layer_steps=freeze * epoch, head_warmup_steps=0),
            'views': views,
        },
        drop_path_rate=0.3,
        gradient_clip=3.0,
    )


#: Recipes by name and by starting weights: `M` for MAE, `D` for DINOv2.
PRESETS: dict[str, dict[str, Preset]] = {
    'paper-workshop': {
        # "Q, V matrices of each attention layer in all other blocks (including all blocks of the decoder)".
        'M': _mae('M-ExPLoRA-[L]-r32', 1.5e-4, 200, decoder_rank=32),
        # DINOv2's OFFICIAL_EPOCH_LENGTH is 1,250 iterations.
        'D': _dinov2('D-ExPLoRA-[L]-r32', 5e-3, 32, 200_000, epoch=1250, freeze=1, views=_VIEWS),
    },
    'paper-released': {
        'M': _mae('M-ExPLoRA-[L]-r64', 4.5e-4, 400, decoder_rank=8, **_RELEASED),
        # An epoch of the released code is 1,000 iterations. No source says whether those are optimizer steps
        # or micro-batches of 32 that make a batch of 1,024; either way the shares of the run are the same.
        'D': _dinov2(
            'D-ExPLoRA-[L]-r64', 1e-3, 1024, 150_000, epoch=1000, freeze=3, views=_FLIPPED, **_RELEASED
        ),
    },
    # The workshop text's fMoW-Sentinel (tokenizer group-channel, 96 px, patch 8) and fMoW-Temporal; the
    # decoder's rank follows from the parameter counts that it reports.
    'paper-sentinel': {'M': _mae('M-ExPLoRA-[1,L]-r32', 4.5e-4, 50, decoder_rank=32)},
    'paper-temporal': {'M': _mae('M-ExPLoRA-[L]-r32', 4.5e-4, 50, decoder_rank=32)},
}


def get_preset(name: str, letter: str) -> Preset:
    """Return a recipe by name and by the objective of the starting weights, `M` or `D`.

    Raises:
        ValueError: If there is no such recipe.
    """
    if name not in PRESETS or letter not in PRESETS[name]:
        raise ValueError(
            f'no preset {name!r} for objective {letter!r}, expected one of '
            + ', '.join(f'{known} ({" and ".join(letters)})' for known, letters in PRESETS.items())
            + '; M is MAE, D is DINOv2'
        )
    return PRESETS[name][letter]


class Choice(NamedTuple):
    """Objective and recipe of a run."""

    factory: Callable[[ViT], Objective]
    recipe: Preset  # the preset's if it applies, else our defaults; with the requested adaptation
    preset: str | None
    report: str


#: Recipe without a preset: the defaults of the configurations.
_OWN = Preset(ExPLoRAConfig(), OptimConfig(), batch=0)


def choose(
    preset: str | None,
    adaptation: ExPLoRAConfig | Mapping[str, Any] | str | None,
    objective: Callable[[ViT], Objective] | None,
    weights: WeightsEnum | str | Path | None,
) -> Choice:
    """Fill in missing arguments of `ExPLoRATask` from a preset; notation sets only blocks and rank.

    Raises:
        ValueError: If notation and objective contradict each other, or nothing names an objective.
    """
    notation = adaptation if isinstance(adaptation, str) else ''
    config = None if adaptation is None else ExPLoRAConfig.create(adaptation)
    letter = named = notation_objective(notation)
    if objective is None:
        letter = named or weights_objective(weights)
        if not letter:
            raise ValueError(
                f'no objective set, and it cannot be inferred from weights {weights}: set adaptation to '
                'M-ExPLoRA-[L]-r32 or D-ExPLoRA-[L]-r32, or pass objective (MAE or DINOv2)'
            )
        objective = OBJECTIVES[letter]
    kind = objective_class(objective)
    if kind is not None:
        letter = kind.letter
        if named and letter != named:
            raise ValueError(
                f'adaptation {notation!r} expects objective {OBJECTIVES[named].__name__}, got '
                f'{kind.__name__}: pass the expected objective, or omit {named}-ExPLoRA- from adaptation'
            )
    if preset is None or kind not in OBJECTIVES.values():
        name = getattr(kind or objective, '__name__', 'this objective')
        report = 'no preset: using the defaults of objective and optimizer'
        if preset is not None:
            report = f'preset {preset} has no recipe for {name} and is not used'
        return Choice(objective, replace(_OWN, adaptation=config or _OWN.adaptation), None, report)
    recipe = get_preset(preset, letter)
    if notation and config and not config.full:
        config = replace(recipe.adaptation, unfrozen_blocks=config.unfrozen_blocks, rank=config.rank)
    given = {k for k, v in getattr(objective, 'keywords', {}).items() if v is not None}
    rest = {k: v for k, v in recipe.objective.items() if k not in given}
    kept = ', '.join(sorted(given & recipe.objective.keys()))
    report = f'preset {preset} for {OBJECTIVES[letter].__name__}' + (kept and f'; overridden: {kept}')
    recipe = replace(recipe, adaptation=config or recipe.adaptation)
    return Choice(partial(objective, **rest), recipe, preset, report)


def weights_objective(weights: WeightsEnum | str | Path | None) -> str:
    """Return the objective that made the weights, `M` or `D`, or an empty string if that is unclear.

    Args:
        weights: An entry, which states it, `timm/<name>`, or a file whose tensors reveal it.
    """
    if weights is None:
        return ''
    entry = weights if isinstance(weights, WeightsEnum) else find_weights(str(weights))
    if entry is not None and 'objective' in (meta := entry_meta(entry)):
        return str(meta['objective'])
    name = str(weights).partition('@')[0]  # without a revision
    if name.startswith('timm/'):
        return 'D' if 'dinov2' in name else 'M' if name.endswith('.mae') else ''
    _, parts, layout = convert(read_weights(weights, values=False).state)
    found = {
        'M': 'satmae' in layout or any(k.startswith('decoder.') for k in parts),
        'D': layout.startswith('dinov2') or any(k.startswith(('dino_head.', 'ibot_head.')) for k in parts),
    }
    return next(k for k, v in found.items() if v) if sum(found.values()) == 1 else ''
