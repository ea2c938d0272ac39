"""Sources of weights: files, named entries, timm's names, and hub repositories."""

from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from explora_geo._compat import WeightsEnum
from explora_geo.checkpoints.convert import dino_name
from explora_geo.checkpoints.facts import Facts
from explora_geo.checkpoints.files import first_line, read_state
from explora_geo.checkpoints.remote import HUB, fetch, fetch_file
from explora_geo.models.weights import entry_meta, entry_name, find_weights

# Fields of entries that stay with the weights
_STATED = ('bands', 'normalization', 'tokenizer', 'tokenizer_options', 'license', 'publication', 'dataset')


class StoredWeights(NamedTuple):
    """Weights as stored."""

    state: dict[str, Tensor]  # tensors by name, as in the source
    source: str  # its name, for messages; with the commit if from the hub
    facts: Facts = Facts()  # facts stated; `base` is the name by which others find it


def read_weights(weights: WeightsEnum | str | Path | StoredWeights, values: bool = True) -> StoredWeights:
    """Read weights from a file, an entry, or the hub.

    Args:
        weights: A `WeightsEnum` or its name, ours or TorchGeo's (`ViTSmall16_Weights.SENTINEL2_ALL_DINO`;
            prefixed by `torchgeo/` if ours has the same name); the path of a file; `timm/<name>[@revision]`;
            or `hf:owner/name[@revision][/file]`. `StoredWeights` are returned unchanged.
        values: Whether to read the values; without them, metadata, names and shapes take no memory.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the source is unknown or cannot be read.
    """
    if isinstance(weights, StoredWeights):
        return weights
    text = str(weights)
    entry = weights if isinstance(weights, WeightsEnum) else find_weights(text)
    if entry is not None:
        name, meta = entry_name(entry), entry_meta(entry)
        state, found = read_state(fetch(entry.url, meta.get('sha256')), values)
        stated = {k: meta[k] for k in _STATED if meta.get(k)} | meta.get('sizes', {})
        stated |= {'backbone': meta.get('model', ''), 'base': name}
        return StoredWeights(state, name, Facts.of_entries(found, name, **stated))
    if text.startswith('timm/'):
        return _read_timm(text)
    file = fetch_file(text) if text.startswith(HUB) else None
    source = text if file is None else file.name
    state, found = read_state(text if file is None else file.path, values)
    base = source if file else Path(text).name + (f', made of {found["base"]}' if 'base' in found else '')
    stated = {'backbone': found.get('backbone') or dino_name(state) or '', 'base': base}
    facts = Facts.of_entries(found, source, **stated)
    if file and not facts.license:
        facts = replace(facts, license=file.license)
    return StoredWeights(state, source, facts)


def _read_timm(text: str) -> StoredWeights:
    """Read weights by timm's name: from its hub repository, at a commit, or from timm's own source."""
    from timm.models import get_pretrained_cfg

    name, _, revision = text.removeprefix('timm/').partition('@')
    config = None
    with suppress(RuntimeError):  # an unknown tag, which timm reports when it builds the model
        config = get_pretrained_cfg(name)
    file = None
    if config is not None and config.hf_hub_id:
        wanted = f'/{config.hf_hub_filename}' if config.hf_hub_filename else ''
        file = fetch_file(f'{HUB}{config.hf_hub_id}{revision and "@"}{revision}{wanted}')
    elif revision:
        raise ValueError(f'{text} is not on the hub and has no revisions: use timm/{name}')
    source = text if file is None else f'timm/{name}@{file.commit}'
    facts = Facts(backbone=name, base=source, license=getattr(config, 'license', None) or '')
    return StoredWeights(timm_state(name, file and file.path), source, facts)


def timm_state(name: str, file: str | Path | None = None) -> dict[str, Tensor]:
    """Return the state dict of timm's model without a classifier, from a hub file or timm's own source.

    Raises ValueError if timm does not know the name or the weights cannot be fetched.
    """
    import timm  # heavy, and needed only for hub weights

    # Some names stand for NumPy archives on the hub; their state dicts are read like any other.
    changes = {'file': str(file), **({} if str(file).endswith('.npz') else {'custom_load': False})}
    overlay: Any = {'pretrained_cfg_overlay': changes} if file else {}
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **overlay)
    except Exception as error:  # timm, the hub client and the network raise many error types
        near = ', '.join(get_close_matches(name, timm.list_pretrained(), 3, 0.4))
        raise ValueError(
            f'cannot load weights timm/{name} ({first_line(error)}): check the network or pass the path of a '
            f'file; similar names are {near}'
        ) from error
    return dict(model.state_dict())
