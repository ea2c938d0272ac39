"""Count the parameters that an adaptation trains, without allocating weights."""

from typing import NamedTuple

import torch

from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_summary
from explora_geo.models.builders import create_vit
from explora_geo.objectives.mae import MAE


class ParameterCount(NamedTuple):
    """Parameter counts of an adapted model.

    Attributes:
        parts: Trainable parameters by part.
        total: All parameters, including frozen ones.
    """

    parts: dict[str, int]
    total: int

    @property
    def trained(self) -> int:
        """Number of trainable parameters."""
        return sum(self.parts.values())


def count_parameters(
    config: ExPLoRAConfig, backbone: str, tokenizer: str = 'patch', objective: str = 'none'
) -> ParameterCount:
    """Count the parameters that an adaptation trains.

    Groups of bands are counted as trained from RGB weights: patch embeddings and predictions start anew.

    Args:
        config: The adaptation.
        backbone: Backbone by timm's name.
        tokenizer: `patch`, `group-channel` or `temporal`.
        objective: `mae` to include its decoder, else `none`.

    Raises:
        ValueError: If a name is unknown.
    """
    if objective not in ('none', 'mae'):
        raise ValueError(f'objective must be none or mae, got {objective!r}')
    with torch.device('meta'):
        vit = create_vit(backbone, tokenizer=tokenizer)
        model = vit if objective == 'none' else MAE(vit)
        decoder = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in vit.parameters())
        total = vit.num_parameters + decoder
        explora(vit, config.with_extra(vit.patch_embed.fresh))
        counts = trainable_summary(vit)
        if isinstance(model, MAE):
            # Start from the decoder in RGB weights of the same backbone.
            rgb = MAE(create_vit(backbone)).extra_state()
            model.load_pretrained(rgb)
            counts |= {f'decoder {part}': n for part, n in trainable_summary(model.decoder).items()}
    return ParameterCount(counts, total)
