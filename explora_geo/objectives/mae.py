"""Masked autoencoding (He et al. 2022) on an adapted backbone: M-ExPLoRA."""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora, merge_lora
from explora_geo.models.decoder import MAEDecoder
from explora_geo.models.vit import ViT
from explora_geo.objectives.base import Objective, mean_patch
from explora_geo.objectives.masking import random_keep

# Default adaptation of a pre-trained decoder: close to the released script, plus the mask token.
DECODER_ADAPTATION = ExPLoRAConfig(unfrozen_blocks=(), rank=8, extra=('mask_token',))
# The paper's count for groups of bands (appendix B.2): r32, with newly initialized predictions.
SLOTS_DECODER_ADAPTATION = ExPLoRAConfig(unfrozen_blocks=(), rank=32)


class Reconstruction(NamedTuple):
    """Output of a forward pass of the autoencoder.

    Attributes:
        pred: Predicted patches in the order of the tokenizer's `patchify`, shape (B, S, L, ·).
        mask: 1 where a patch was removed, shape (B, S, L).
        latent: Class token and kept tokens of the encoder, shape (B, 1 + K, D).
    """

    pred: Tensor
    mask: Tensor
    latent: Tensor


class MAE(Objective):
    """Reconstruction of removed patches from the kept ones."""

    letter = 'M'

    def __init__(
        self,
        backbone: ViT,
        mask_ratio: float | None = None,
        norm_pix_loss: bool | None = None,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int | None = None,
        decoder_adaptation: ExPLoRAConfig | str | None = None,
        shared_across_slots: bool = False,
    ) -> None:
        """Initialize an MAE objective.

        In `ExPLoRATask` the preset replaces None; alone, or with `preset: null`, the values below do.

        Args:
            backbone: Encoder.
            mask_ratio: Share of removed patches, in (0, 1); 0.75 if None.
            norm_pix_loss: Predict each patch normalized by its own mean and variance (over all bands, for
                groups of bands); True if None.
            decoder_embed_dim: Width of the decoder, unless the checkpoint carries a decoder.
            decoder_depth: Number of decoder blocks, unless the checkpoint carries a decoder.
            decoder_num_heads: Attention heads of the decoder, which checkpoints do not state; if None, heads
                of width 32, as in MAE.
            decoder_adaptation: What trains in a pre-trained decoder; a random one trains in full. If None,
                LoRA r8, norms and the mask token, or for groups of bands LoRA r32 and norms, as the paper
                counts.
            shared_across_slots: Remove the same patches in every slot (group of bands, frame) instead of
                choosing them per slot.

        Raises:
            ValueError: If the mask ratio leaves no patches to keep or to predict.
        """
        super().__init__(backbone)
        mask_ratio = 0.75 if mask_ratio is None else mask_ratio
        tokens = backbone.patch_embed.num_patches * backbone.patch_embed.num_slots
        if not 0 < mask_ratio < 1 or not 0 < int(tokens * (1 - mask_ratio)) < tokens:
            raise ValueError(
                f'mask_ratio must leave patches to keep and to predict, got {mask_ratio} for {tokens} patches'
            )
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss is not False
        self.shared_across_slots = shared_across_slots
        if decoder_adaptation is None:
            grouped = bool(backbone.patch_embed.fresh)
            decoder_adaptation = SLOTS_DECODER_ADAPTATION if grouped else DECODER_ADAPTATION
        self.decoder_adaptation = ExPLoRAConfig.create(decoder_adaptation)
        self.decoder_num_heads = decoder_num_heads
        self.decoder = self._build_decoder(decoder_embed_dim, decoder_depth)

    def _build_decoder(self, embed_dim: int, depth: int, mlp_ratio: float = 4) -> MAEDecoder:
        heads = self.decoder_num_heads or max(1, embed_dim // 32)
        if embed_dim % heads:
            raise ValueError(
                f'decoder_num_heads must divide the decoder width, got {heads} for width {embed_dim}'
            )
        return MAEDecoder(
            self.backbone.patch_embed, self.backbone.embed_dim, embed_dim, depth, heads, mlp_ratio
        )

    def load_pretrained(self, parts: Mapping[str, Tensor]) -> str:
        """Load and adapt the checkpoint's decoder of any size; without one, the decoder trains in full."""
        state = {k.removeprefix('decoder.'): v for k, v in parts.items() if k.startswith('decoder.')}
        if not {'mask_token', 'blocks.0.mlp.fc1.bias'} <= state.keys():  # no decoder, or one of another kind
            return 'the weights contain no decoder: it starts random and trains in full'
        position, slot_embed = state.pop('pos_embed', None), state.pop('slot_embed', None)
        embed_dim = state['mask_token'].shape[-1]
        depth = len({k.split('.')[1] for k in state if k.startswith('blocks.')})
        hidden = state['blocks.0.mlp.fc1.bias'].shape[0]
        self.decoder = self._build_decoder(embed_dim, depth, hidden / embed_dim)
        adaptation, note = self.decoder_adaptation, ''
        pred = {f'pred.{k}': v for k, v in self.decoder.pred.state_dict().items()}
        stored = {k: v.shape for k, v in state.items() if k.startswith('pred.')}
        if stored and stored != {k: v.shape for k, v in pred.items()}:
            # The bands differ from the source's: the prediction starts anew and trains (appendix B.2).
            state = {k: v for k, v in state.items() if k not in stored} | pred
            adaptation = adaptation.with_extra(['pred'])
            note = '; its prediction layer starts random'
        try:
            self.decoder.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).strip().split('\n\t')[1:2] or [str(error)]
            raise ValueError(f'the decoder in the weights does not match: {first[0]}') from error
        tokenizer = self.backbone.patch_embed
        if position is not None and position.shape[1] == 1 + tokenizer.num_patches:
            self.decoder.pos_embed = position
        if slot_embed is not None and slot_embed.shape[1] == 1 + tokenizer.num_slots:
            self.decoder.slot_embed = slot_embed
        explora(self.decoder, adaptation)
        name = adaptation.notation()
        return f'decoder of {depth} blocks, width {embed_dim}, loaded and adapted as {name}{note}'

    def extra_state(self) -> dict[str, Tensor]:
        """Return the decoder with its LoRA merged, so that another run can start from the file."""
        merged = merge_lora(copy.deepcopy(self.decoder))
        return {f'decoder.{k}': v for k, v in merged.state_dict().items()}

    pool = staticmethod(mean_patch)  # no loss trains MAE's class token directly

    def reconstruct(
        self, image: Tensor, noise: Tensor | None = None, timestamps: Tensor | None = None
    ) -> Reconstruction:
        """Mask, encode and decode.

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer expects.
            noise: Noise that orders the patches, shape (B, S·L), or (B, L) if shared; drawn if None.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).

        Returns:
            The prediction, mask and latent.
        """
        tokenizer = self.backbone.patch_embed
        targets = tokenizer.patchify(image)
        slots, length = targets.shape[1], targets.shape[2]
        if noise is None:
            size = length if self.shared_across_slots else slots * length
            noise = torch.rand(len(image), size, device=image.device)
        keep, mask = random_keep(noise, self.mask_ratio, slots, self.shared_across_slots)
        features = self.backbone(image, timestamps=timestamps, keep=keep)
        grid = tokenizer.grid(image)
        self.decoder.grad_checkpointing = self.backbone.grad_checkpointing
        pred = self.decoder(features.cls, features.patches, keep, grid, slots, timestamps)
        latent = torch.cat([features.cls.unsqueeze(1), features.patches], dim=1)
        return Reconstruction(pred, mask.unflatten(1, (slots, length)), latent)

    def loss(self, image: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Compute the mean squared error over the removed patches, with equal weight for each.

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer expects.
            pred: Predicted patches, shape (B, S, L, ·).
            mask: 1 where a patch was removed, shape (B, S, L).

        Returns:
            Scalar loss.
        """
        tokenizer = self.backbone.patch_embed
        target = tokenizer.patchify(image).float()
        if self.norm_pix_loss:
            mean, var = tokenizer.target_statistics(target)
            target = (target - mean) / (var + 1e-6).sqrt()
        error = (pred.float() - target).square()
        sizes = tokenizer.target_sizes
        if len(set(sizes)) == 1:
            error = error.mean(dim=-1)
        else:  # ignore the padding of small slots
            error = torch.stack([error[:, i, :, :n].mean(dim=-1) for i, n in enumerate(sizes)], dim=1)
        return (error * mask).sum() / mask.sum()

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Compute the reconstruction loss of a batch; see `Objective.forward`."""
        image = batch['image']
        out = self.reconstruct(image, timestamps=batch.get('timestamps'))
        return {'loss_mae': self.loss(image, out.pred, out.mask)}

    @torch.no_grad()
    def pictures(self, image: Tensor, timestamps: Tensor | None = None) -> dict[str, Tensor]:
        """Return the masked input and the reconstruction, both in the units of the input.

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer expects.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).

        Returns:
            `masked`, the input with removed patches set to zero, and `reconstruction`, the input with
                removed patches predicted (with the input's mean and variance under `norm_pix_loss`).
        """
        tokenizer = self.backbone.patch_embed
        out = self.reconstruct(image, timestamps=timestamps)
        grid = tokenizer.grid(image)
        target = tokenizer.patchify(image)
        pred = out.pred
        if self.norm_pix_loss:
            mean, var = tokenizer.target_statistics(target)
            pred = pred * (var + 1e-6).sqrt() + mean
        mask = out.mask.unsqueeze(-1)
        masked = tokenizer.unpatchify(target * (1 - mask), grid)
        filled = tokenizer.unpatchify(torch.where(mask.bool(), pred, target), grid)
        return {'masked': masked, 'reconstruction': filled}
