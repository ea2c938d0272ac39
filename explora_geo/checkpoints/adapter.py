"""Adapter files: the few percent of the weights that ExPLoRA trained, and the base they belong to."""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explora_geo._version import __version__
from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_names
from explora_geo.bands import same_bands
from explora_geo.checkpoints.facts import DAMAGE, Facts
from explora_geo.checkpoints.files import check_exact, first_line, read_state, state_sha256, write_state
from explora_geo.checkpoints.remote import ADAPTER, HUB, fetch_file
from explora_geo.models.builders import create_vit
from explora_geo.models.position import fit_position, sincos_2d
from explora_geo.models.vit import ViT

_FORMAT = 'explora_geo.adapter'
_HEADER = 2
# Used only in pre-training: backbones with and without it accept the same adapters.
_PRETRAINING = {'mask_token'}


@dataclass(frozen=True, kw_only=True)
class AdapterHeader(Facts):
    """Header of an adapter file: the adapted backbone, and the base it belongs to."""

    config: dict[str, Any]  # fields of the `ExPLoRAConfig`
    base_sha256: str  # hash of the frozen base weights, from `frozen_sha256`
    version: str = __version__  # package version that wrote the file
    # version 1 hashed the base with positions resampled to `img_size`, and omits the normalization
    header: int = _HEADER

    def build(self) -> ViT:
        """Build the unadapted backbone with random weights."""
        return create_vit(self.backbone, **self.arguments)

    @property
    def explora_config(self) -> ExPLoRAConfig:
        """The adaptation."""
        return ExPLoRAConfig(**self.config)

    def write(self, path: str | Path, state: Mapping[str, Tensor]) -> None:
        """Write the adapter file, atomically."""
        stated = {k: v for k, v in asdict(self).items() if v}
        write_state(path, state, {'format': _FORMAT, 'adapter': json.dumps(stated)})


def save_adapter(
    path: str | Path,
    vit: ViT,
    backbone: str,
    config: ExPLoRAConfig,
    source: ViT | None = None,
    dtype: torch.dtype = torch.float32,
    base_sha256: str | None = None,
) -> AdapterHeader:
    """Write the trained parameters of an adapted backbone, atomically.

    Args:
        path: File to write, `.safetensors`.
        vit: Adapted backbone.
        backbone: Its name, for rebuilding.
        config: Its adaptation; if full, raises ValueError, as the whole model must be saved.
        source: Backbone of the same layout that supplies the values, such as the teacher.
        dtype: Data type of the values in the file: float32, or bfloat16 to halve its size.
        base_sha256: Result of `frozen_sha256` for the backbone, if already known.
    """
    if config.full:
        raise ValueError('full pre-training has no adapter: save the whole model')
    names = set(trainable_names(vit)) - _PRETRAINING
    config = replace(config, extra=tuple(name for name in config.extra if name not in _PRETRAINING))
    sha256 = base_sha256 or frozen_sha256(vit)
    header = AdapterHeader.of(vit, backbone, config=config.to_dict(), base_sha256=sha256)
    header.write(path, {k: v.to(dtype) for k, v in (source or vit).state_dict().items() if k in names})
    return header


def frozen_sha256(vit: ViT, trains: Iterable[str] | None = None, grid: tuple[int, int] | None = None) -> str:
    """Hash what an adapted backbone keeps from its base: every tensor that the adapter does not hold.

    Positions are hashed as stored in the base file, so that the hash is the same at every image size;
    positions computed by the model do not count. For an unadapted backbone, `trains` names the adapter's
    tensors; `grid` resamples positions to it first, as in headers of version 1.
    """
    names = {*(trainable_names(vit) if trains is None else trains), *_PRETRAINING}
    state = {k: v for k, v in vit.state_dict().items() if k not in names}
    stored = vit.stored_position
    if 'pos_embed' in state and stored is not None and _still_stored(vit, stored):
        state['pos_embed'] = stored if grid is None else _position_at(vit, grid)
    return state_sha256(state)


def _position_at(vit: ViT, grid: tuple[int, int]) -> Tensor:
    """Return frozen positions resampled to another patch grid."""
    stored = vit.stored_position
    assert stored is not None and vit.pos_embed is not None
    if stored.numel():
        return fit_position(stored, grid)
    codes = sincos_2d(vit.pos_embed.shape[-1], grid)[None].to(vit.pos_embed)
    return torch.cat([torch.zeros_like(vit.pos_embed[:, :1]), codes], dim=1)


def _still_stored(vit: ViT, stored: Tensor) -> bool:
    """Return whether positions still equal those of the file."""
    assert vit.pos_embed is not None
    if not stored.numel():
        return not vit.learned_position
    return torch.equal(vit.pos_embed.detach().cpu(), fit_position(stored, vit.patch_embed.grid_size))


def read_adapter(path: str | Path) -> tuple[AdapterHeader, dict[str, Tensor]]:
    """Read an adapter from a file, or from the hub by `hf:owner/name[@revision][/file]`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged, not an adapter file, or its tensors do not match its header.
    """
    if str(path).startswith(HUB):
        path = fetch_file(str(path), (ADAPTER,)).path
    state, metadata = read_state(path)
    if metadata.get('format') != _FORMAT:
        raise ValueError(f'{path} is not an adapter file: its header does not contain format {_FORMAT}')
    try:
        header = AdapterHeader.read({'header': 1, **json.loads(metadata['adapter'])})
        if not 1 <= header.header <= _HEADER:
            raise ValueError(f'version must be 1 to {_HEADER}, got {header.header}: update explora_geo')
        if not header.bands or not header.img_size:
            raise ValueError('bands or img_size is missing')
        with torch.device('meta'):  # takes no memory
            plan = header.build()
        names = trainable_names(explora(plan, header.explora_config))
    except DAMAGE as error:  # building fails in many ways if the header describes no ViT
        raise ValueError(f'{path} has an invalid adapter header ({first_line(error)})') from error
    if header.header == 1:
        warnings.warn(
            f'{path} does not specify how its images were normalized (header version 1): images will be '
            'normalized with the statistics of the data',
            stacklevel=2,
        )
    own = plan.state_dict()
    check_exact(state, {name: own[name] for name in names}, path)
    return header, state


def check_architecture(header: AdapterHeader, vit: ViT, path: str | Path) -> None:
    """Reject a backbone whose bands or layout differ from the adapter's; image sizes may differ."""
    with torch.device('meta'):
        plan = header.build()
    wanted, given = (
        {k: v.shape[-1:] if k == 'pos_embed' else v.shape for k, v in model.state_dict().items()}
        for model in (plan, vit)
    )
    given.pop('mask_token', None)
    if wanted != given or not same_bands(header.bands, vit.patch_embed.bands):
        raise ValueError(
            f'{path} was made for {header.backbone} at {header.img_size} px with {header.patch_size} px '
            f'patches and bands {", ".join(header.bands)}, but the backbone has width {vit.embed_dim}, '
            f'{vit.depth} blocks, {vit.patch_embed.patch_size} px patches and bands '
            f'{", ".join(vit.patch_embed.bands)}: use the same architecture, with the same bands in order'
        )


def put_adapter(
    vit: ViT, header: AdapterHeader, state: dict[str, Tensor], path: str | Path, strength: float = 1.0
) -> None:
    """Apply an adapter to a backbone of its architecture, in place; raise ValueError if the base differs."""
    _check_strength(strength, header, path)
    grid, own = (header.img_size // header.patch_size,) * 2, vit.patch_embed.grid_size
    found = frozen_sha256(vit, state, grid if header.header == 1 else None)
    if found != header.base_sha256:
        raise ValueError(
            f'{path} was trained on different base weights (expected SHA-256 {header.base_sha256[:12]}…, got '
            f'{found[:12]}…): use {header.base or "the weights"}, from which {header.backbone} was adapted'
        )
    explora(vit, header.explora_config)
    computed = vit.stored_position is not None and not vit.stored_position.numel()
    if 'pos_embed' in state:  # trained positions have the adapter's image size
        state = {**state, 'pos_embed': fit_position(state['pos_embed'], own)}
    elif computed and grid != own:  # it was trained on the codes of its own grid, as in a merged file
        state = {**state, 'pos_embed': fit_position(_position_at(vit, grid), own)}
    if strength < 1:
        state = _weaken(state, vit.state_dict(), strength)
    vit.load_state_dict(state, strict=False)
    vit.adaptation = header.explora_config.notation()
    if header.normalization is not None:
        vit.normalization = header.normalization


def _check_strength(strength: float, header: AdapterHeader, path: str | Path) -> None:
    extra = header.explora_config.extra
    if not 0 <= strength <= 1:
        raise ValueError(f'strength must be from 0 (the base) to 1 (the adapter), got {strength:g}')
    if strength < 1 and extra:
        raise ValueError(
            f'{path} contains {", ".join(extra)}, missing from the base: strength must be 1, got {strength:g}'
        )


def _weaken(state: Mapping[str, Tensor], base: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """Scale the adapter's difference from the base."""
    weaker = {k: strength * v if '.lora_b.' in k else v for k, v in state.items() if '.lora_' in k}
    rest = {k: v for k, v in state.items() if k not in weaker}
    return weaker | {k: torch.lerp(base[k], v.to(base[k]), strength) for k, v in rest.items()}


def scale_adapter(path: str | Path, base: ViT, out: str | Path, strength: float) -> AdapterHeader:
    """Write a copy of an adapter file at a strength from 0, which leaves the base unchanged, to 1.

    `base` is the unadapted backbone it was made on. Raises ValueError if the strength is out of range, or
    below 1 for an adapter that holds parameters which the base lacks.
    """
    header, state = read_adapter(path)
    _check_strength(strength, header, path)
    if strength < 1:
        weaker = _weaken(state, base.state_dict(), strength)
        # At strength 0 the values are the base's own: rounding would change them.
        state = weaker if strength == 0 else {k: v.to(state[k]) for k, v in weaker.items()}
    header.write(out, state)
    return header
