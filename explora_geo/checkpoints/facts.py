"""Facts that files state about a backbone, read and checked before anything is built from them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self, get_origin

from explora_geo.models.normalization import Normalization
from explora_geo.models.vit import ViT

#: Maximum patches per image side that a file may request: 4096 px in patches of 16.
MAX_GRID = 256
_ARGUMENTS = ('img_size', 'patch_size', 'bands', 'tokenizer', 'tokenizer_options')
#: Key of the license in older files.
_FORMER = 'licence'
_JSON = ('bands', 'normalization', 'sizes', 'tokenizer')
# Errors that damaged or hostile content can raise
DAMAGE = (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts that a file states about a backbone; empty where it states none."""

    backbone: str = ''  # name for `create_vit`
    bands: tuple[str, ...] = ()  # names, in order
    img_size: int = 0  # image side, pixels
    patch_size: int = 0  # patch side, pixels
    tokenizer: str = 'patch'
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    normalization: Normalization | None = None  # of the input images
    base: str = ''  # name of the weights, with the commit if from the hub
    license: str = ''  # license of the weights, as stated by their publishers
    adaptation: str = ''  # notation of the merged adapter
    publication: str = ''  # where the weights are described
    dataset: str = ''  # training data of the weights

    @classmethod
    def of(cls, vit: ViT, backbone: str, **more: Any) -> Self:
        """Return the facts about a model of this name, with further fields."""
        tokenizer = vit.patch_embed
        return cls(
            backbone=backbone,
            bands=tokenizer.bands,
            img_size=tokenizer.img_size,
            patch_size=tokenizer.patch_size,
            tokenizer=tokenizer.kind,
            tokenizer_options=tokenizer.options,
            normalization=vit.normalization,
            base=vit.base,
            license=vit.license,
            adaptation=vit.adaptation,
            **more,
        )

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Self:
        """Read fields from JSON or from an entry.

        Raises:
            ValueError: If one is unknown or invalid; the message does not name the source.
        """
        known = {f.name: get_origin(f.type) or f.type for f in dataclasses.fields(cls)}
        found = dict(stated)
        if _FORMER in found:
            found.setdefault('license', found.pop(_FORMER))
        for name, value in found.items():
            kind = known.get(name)
            if kind is None or (kind in (str, int, dict) and type(value) is not kind):
                raise ValueError(f'{name} is unknown or has the wrong type, got {value!r:.80}')
        bands = found.get('bands', ())
        if 'bands' in found:
            named = isinstance(bands, list | tuple) and all(isinstance(b, str) and b for b in bands)
            if not named or not bands or len(set(bands)) != len(bands):
                raise ValueError(f'bands must be distinct names, got {bands!r:.80}')
            found['bands'] = tuple(bands)
        if 'img_size' in found or 'patch_size' in found:
            check_sizes(found.get('img_size'), found.get('patch_size'))
        if found.get('normalization') is not None:
            found['normalization'] = Normalization.read(found['normalization'], bands) if bands else None
        return cls(**found)

    @classmethod
    def of_entries(cls, meta: Mapping[str, str], source: str, **more: Any) -> Self:
        """Read the text entries of a model's header; further fields, such as an entry's, take precedence.

        Raises:
            ValueError: If one is damaged; the message names the source.
        """
        try:
            stated: dict[str, Any] = {k: meta[k] for k in (*_TEXT, _FORMER) if k in meta}
            stated |= {k: json.loads(meta[k]) for k in _JSON if k in meta}
            stated |= dict(stated.pop('sizes', {}))
            if 'tokenizer' in stated:
                options = dict(stated['tokenizer'])
                stated |= {'tokenizer': options.pop('kind'), 'tokenizer_options': options}
            return cls.read({**stated, **more})
        except DAMAGE as error:
            raise ValueError(f'{source} has an invalid header ({error})') from error

    def entries(self) -> dict[str, str]:
        """Return text entries for a model's header, readable by `of_entries`; unknown facts are omitted."""
        facts: dict[str, Any] = {name: getattr(self, name) for name in _TEXT} | {
            'bands': self.bands,
            'sizes': {'img_size': self.img_size, 'patch_size': self.patch_size},
            'normalization': self.normalization and self.normalization.to_dict(),
        }
        if self.tokenizer != 'patch':
            facts['tokenizer'] = {'kind': self.tokenizer, **self.tokenizer_options}
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items() if v}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `create_vit` stated by the file."""
        return {name: value for name in _ARGUMENTS if (value := getattr(self, name))}


_TEXT = tuple(f.name for f in dataclasses.fields(Facts) if f.type is str and f.name not in _JSON)


def check_sizes(img_size: Any, patch_size: Any) -> None:
    """Check image and patch sizes, in pixels, before a model is built for them.

    Raises:
        ValueError: If one is not an integer, or there would be more than `MAX_GRID` patches per side.
    """
    whole = all(type(size) is int for size in (img_size, patch_size))
    if not whole or not 0 < patch_size <= img_size <= MAX_GRID * patch_size:
        raise ValueError(
            f'img_size and patch_size must be integers with 1 to {MAX_GRID} patches per side, got '
            f'{img_size!r} and {patch_size!r}'
        )


def model_metadata(vit: ViT, backbone: str) -> dict[str, str]:
    """Return header entries for the file of a whole model, stating all its `Facts`."""
    return {'format': 'pt', **Facts.of(vit, backbone).entries()}
