"""Where weights come from: files, entries by name, timm's names, repositories of the hub."""

from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import torch
from torch import Tensor

from explora_geo._compat import WeightsEnum
from explora_geo.checkpoints.convert import dino_name
from explora_geo.checkpoints.download import download, file_sha256
from explora_geo.checkpoints.files import read_state
from explora_geo.checkpoints.hub import HUB, cached_file, fetch_file
from explora_geo.checkpoints.metadata import header_entries
from explora_geo.models.weights import entry_meta, entry_name, find_weights

# What entries state that goes with the weights.
_STATED = ('bands', 'normalization', 'sizes', 'objective', 'licence', 'publication', 'dataset')


class StoredWeights(NamedTuple):
    """Weights as they are stored.

    Attributes:
        state: Tensors by name, as the source holds them.
        meta: Its metadata as text, such as `bands` in JSON; `base` is the name by which others find it.
        source: Its name, for messages; of what comes from the hub with the commit.
    """

    state: dict[str, Tensor]
    meta: dict[str, str]
    source: str


def read_weights(weights: WeightsEnum | str | Path | StoredWeights, values: bool = True) -> StoredWeights:
    """Read weights from a file, an entry, or the hub.

    Args:
        weights: A `WeightsEnum` or its name, of ours or of TorchGeo (`ViTSmall16_Weights.SENTINEL2_ALL_DINO`;
            `torchgeo/` before it where ours has the same); the path of a file; `timm/<name>[@revision]`; or
            `hf:owner/name[@revision][/file]`. What was read already is returned as it is.
        values: Whether to read the numbers; a look at metadata, names and shapes of a file takes no memory.

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
        facts = {k: meta.get(k) for k in _STATED} | {'backbone': meta.get('model'), 'base': name}
        if 'tokenizer' in meta:
            facts['tokenizer'] = {'kind': meta['tokenizer'], **meta.get('tokenizer_options', {})}
        state, found = read_state(fetch(entry.url, meta), values)
        return StoredWeights(state, {**found, **header_entries(facts)}, name)
    if text.startswith('timm/'):
        return _read_timm(text)
    if text.startswith(HUB):
        file = fetch_file(text)
        state, found = _read(file.path, values)
        facts = {'licence': file.licence, **found, 'base': file.name}
        return StoredWeights(state, header_entries(facts), file.name)
    state, found = _read(text, values)
    base = f'{Path(text).name}, made of {found["base"]}' if 'base' in found else Path(text).name
    return StoredWeights(state, {**found, 'base': base}, text)


def _read(path: str | Path, values: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and metadata, with the backbone's name where what it holds tells it."""
    state, found = read_state(path, values)
    if 'backbone' not in found and (name := dino_name(state)):
        found = {**found, 'backbone': name}
    return state, found


def fetch(url: str, meta: Mapping[str, Any]) -> Path:
    """The local file of a URL, downloaded once into torch's cache.

    A `sha256` that `meta` states, whole or its beginning, is checked each time.

    Raises:
        ValueError: If it cannot be downloaded or is another file.
    """
    if url.startswith(HUB):
        return fetch_file(url).path
    path = local_file(url)
    expected = meta.get('sha256')
    if urlparse(url).scheme == 'file' or path.is_file():
        found = file_sha256(path) if expected and path.is_file() else ''
        if expected and found and not found.startswith(expected):
            raise ValueError(
                f'{path} is not the file of {url}: its SHA-256 is {found}, expected {expected}; remove it'
            )
    else:
        download(url, path, expected)
    return path


def local_file(url: str) -> Path:
    """Where the file of a URL lies, or will lie once it is downloaded."""
    if url.startswith(HUB):
        return cached_file(url)
    parts = urlparse(url)
    path = Path(unquote(parts.path))
    return path if parts.scheme == 'file' else Path(torch.hub.get_dir()) / 'checkpoints' / path.name


def _read_timm(text: str) -> StoredWeights:
    """Weights by timm's name: from its repository on the hub, at a commit, or from where timm has them."""
    from timm.models import get_pretrained_cfg

    name, _, revision = text.removeprefix('timm/').partition('@')
    config = None
    with suppress(RuntimeError):  # a tag that timm does not know, as it says when it builds the model
        config = get_pretrained_cfg(name)
    file = None
    if config is not None and config.hf_hub_id:
        wanted = f'/{config.hf_hub_filename}' if config.hf_hub_filename else ''
        file = fetch_file(f'{HUB}{config.hf_hub_id}{revision and "@"}{revision}{wanted}')
    elif revision:
        raise ValueError(f'{text} is not on the hub, so it has no revision: give timm/{name}')
    source = text if file is None else f'timm/{name}@{file.commit}'
    facts = {'backbone': name, 'base': source, 'licence': getattr(config, 'license', None)}
    return StoredWeights(timm_state(name, file and file.path), header_entries(facts), source)


def timm_state(name: str, file: str | Path | None = None) -> dict[str, Tensor]:
    """State dict of timm's model without a classifier, from a file of the hub or from where timm has it.

    Raises:
        ValueError: If timm does not know the name or the weights cannot be fetched.
    """
    import timm  # heavy, and only needed for hub weights

    # Some names stand for NumPy archives on the hub; a state dict of theirs is read as any other.
    changes = {'file': str(file), **({} if str(file).endswith('.npz') else {'custom_load': False})}
    overlay: Any = {'pretrained_cfg_overlay': changes} if file else {}
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **overlay)
    except Exception as error:  # timm, the hub client and the network raise many kinds
        first = str(error).split('\n')[0]
        near = ', '.join(get_close_matches(name, timm.list_pretrained(), 3, 0.4))
        raise ValueError(
            f'cannot get the weights timm/{name} ({first}): check the network, or give the path of a '
            f'file; names like it are {near}'
        ) from error
    return dict(model.state_dict())
