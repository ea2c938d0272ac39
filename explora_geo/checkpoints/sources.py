"""Where weights come from: files, entries by name, timm's hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import torch
from torch import Tensor

from explora_geo._compat import WeightsEnum
from explora_geo.checkpoints.download import download, file_sha256
from explora_geo.checkpoints.files import read_state
from explora_geo.models import weights as named


class StoredWeights(NamedTuple):
    """Weights as they are stored.

    Attributes:
        state: Tensors by name, as the source holds them.
        meta: Its metadata (`bands` as JSON if stated).
        source: Its name, for messages.
    """

    state: dict[str, Tensor]
    meta: dict[str, str]
    source: str


def read_weights(weights: WeightsEnum | str | Path | StoredWeights, values: bool = True) -> StoredWeights:
    """Read weights from a file, an entry, or timm's hub.

    Args:
        weights: A `WeightsEnum` or its name (`ViTTiny8_Weights.TINY_IMAGENET_MAE`), the path of a file,
            or `timm/<name>` for timm's hub; what was read already is returned as it is.
        values: Whether to read the numbers; a look at metadata, names and shapes of a file takes no memory.

    Returns:
        Tensors, metadata and name.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the source cannot be read.
    """
    if isinstance(weights, StoredWeights):
        return weights
    if isinstance(weights, str):
        group, _, member = weights.partition('.')
        weights = getattr(getattr(named, group, None), '__members__', {}).get(member, weights)
    if isinstance(weights, WeightsEnum):
        bands, model = weights.meta.get('bands'), weights.meta.get('model')
        meta = {'bands': json.dumps(list(bands))} if bands else {}
        meta |= {'backbone': model} if model else {}
        if 'tokenizer' in weights.meta:
            options = weights.meta.get('tokenizer_options', {})
            meta['tokenizer'] = json.dumps({'kind': weights.meta['tokenizer'], **options})
        state, found = read_state(fetch(weights.url, weights.meta), values)
        return StoredWeights(state, {**found, **meta}, str(weights))
    text = str(weights)
    if text.startswith('timm/'):
        return StoredWeights(timm_state(text.removeprefix('timm/')), {}, text)
    return StoredWeights(*read_state(text, values), text)


def fetch(url: str, meta: Mapping[str, Any]) -> Path:
    """The local file of a URL, downloaded once into torch's cache.

    Args:
        url: A `file:` URL, or one to download.
        meta: `sha256` is checked if it is stated, each time.

    Returns:
        Path of the file.

    Raises:
        ValueError: If it cannot be downloaded or is another file.
    """
    path = local_file(url)
    expected = meta.get('sha256')
    if urlparse(url).scheme == 'file' or path.is_file():
        found = file_sha256(path) if expected and path.is_file() else expected
        if found != expected:
            raise ValueError(
                f'{path} is not the file of {url}: its SHA-256 is {found}, expected {expected}; remove it'
            )
    else:
        download(url, path, expected)
    return path


def local_file(url: str) -> Path:
    """Where the file of a URL lies, or will lie once it is downloaded."""
    parts = urlparse(url)
    path = Path(unquote(parts.path))
    return path if parts.scheme == 'file' else Path(torch.hub.get_dir()) / 'checkpoints' / path.name


def timm_state(name: str, file: str | Path | None = None) -> dict[str, Tensor]:
    """Pre-trained weights by timm's name, from its hub or from a local file in the hub's format.

    Args:
        name: timm model with tag, such as `vit_base_patch16_224.mae`.
        file: Read this file instead of downloading.

    Returns:
        State dict with timm's keys, without a classifier.

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
        raise ValueError(
            f'cannot get the weights timm/{name} ({first}): check the name with timm.list_models, and '
            'the network, or give the path of a downloaded file'
        ) from error
    return dict(model.state_dict())
