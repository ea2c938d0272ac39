"""Backbones from files that say themselves what they are."""

from pathlib import Path
from typing import Any

from torchvision.models._api import WeightsEnum

from explora_geo.checkpoints.adapter import read_adapter
from explora_geo.checkpoints.io import build_backbone
from explora_geo.checkpoints.metadata import stated_bands, stated_sizes, stated_tokenizer
from explora_geo.checkpoints.sources import read_weights
from explora_geo.models.builders import task_size
from explora_geo.models.vit import ViT


def open_backbone(
    weights: WeightsEnum | str | Path,
    adapter: str | Path | None = None,
    model: str | None = None,
    largest: int | None = None,
    **kwargs: Any,
) -> tuple[ViT, str]:
    """Load a plain backbone, a merged one, or base and adapter.

    Name, size, bands and tokenizer come from the adapter's header, or from the metadata of the weights,
    where they state them and nothing else is asked for.

    Args:
        weights: A `WeightsEnum` or its name, a file, or `timm/<name>`.
        adapter: Adapter file made on exactly these weights; it is merged.
        model: Backbone name; see `create_vit`.
        largest: Side of the images at hand, pixels: where nothing states a size, DINOv2's backbones are built
            for at most this and 224 instead of timm's 518.
        **kwargs: Further arguments of `create_vit`; None means as stated.

    Returns:
        The backbone in evaluation mode, and its name.

    Raises:
        ValueError: If the name is neither stated nor given, or the files do not fit.
        FileNotFoundError: If a file does not exist.
    """
    stated: dict[str, Any] = {}
    read = read_weights(weights)
    if adapter is not None:
        header, _ = read_adapter(adapter)
        model = model or header.backbone
        stated = header.arguments
    else:
        _, meta, source = read
        text = str(weights)
        named = text.removeprefix('timm/') if text.startswith('timm/') else None
        model = model or meta.get('backbone') or named
        if model is None:
            raise ValueError(
                f'{source} does not say which backbone it is: give model, such as vit_base_patch16_224'
            )
        stated = stated_tokenizer(meta, source)
        bands = stated_bands(meta, source)
        stated |= {} if bands is None else {'bands': bands}
        if model == meta.get('backbone'):
            stated |= stated_sizes(meta, source)
    given = {k: v for k, v in kwargs.items() if v is not None}
    options = {**stated, **given}
    if largest is not None and 'img_size' not in options:
        options['img_size'] = task_size(model, options.get('patch_size'), largest)
    return build_backbone(model, read, adapter, **options), model
