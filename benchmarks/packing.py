"""Crops of two sizes through the blocks: a call per size against one call for all tokens."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import atomic_path
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT

Run = Callable[[ViT, list[Tensor]], list[Tensor]]


def _blocks(vit: ViT) -> list[Any]:
    return list(vit.blocks)


def separate(vit: ViT, sizes: list[Tensor]) -> list[Tensor]:
    """One call per crop size, what the objective does.

    Args:
        vit: Backbone.
        sizes: Tokens by crop size, each of shape (crops, tokens, D).

    Returns:
        Tokens after the blocks, in the same shapes.
    """
    out = []
    for x in sizes:
        for block in _blocks(vit):
            x = block(x)
        out.append(x)
    return out


def split_attention(vit: ViT, sizes: list[Tensor]) -> list[Tensor]:
    """All tokens in one matrix product, attention alone by size (what nested attention kernels do)."""
    counts = [x.shape[0] * x.shape[1] for x in sizes]

    def attend(attn: Any, x: Tensor) -> Tensor:
        parts = []
        for part, like in zip(attn.qkv(x).split(counts), sizes, strict=True):
            heads = part.view(*like.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(*heads.unbind(0))
            parts.append(y.transpose(1, 2).reshape(-1, like.shape[-1]))
        return attn.proj(torch.cat(parts))

    x = torch.cat([x.flatten(0, 1) for x in sizes])
    for block in _blocks(vit):
        x = x + block.ls1(attend(block.attn, block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return [part.view_as(like) for part, like in zip(x.split(counts), sizes, strict=True)]


def nested(vit: ViT, sizes: list[Tensor]) -> list[Tensor]:
    """Nested tensors of all crops, with PyTorch's attention for them."""
    x = torch.nested.nested_tensor([crop for x in sizes for crop in x.unbind(0)], layout=torch.jagged)

    def attend(attn: Any, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in attn.qkv(x).chunk(3, dim=-1)
        )
        return attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))

    for block in _blocks(vit):
        x = x + block.ls1(attend(block.attn, block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    parts = list(x.unbind(0))
    starts = [sum(len(y) for y in sizes[:i]) for i in range(len(sizes))]
    return [torch.stack(parts[s : s + len(y)]) for s, y in zip(starts, sizes, strict=True)]


def _rows(sizes: Sequence[Tensor], images: int) -> tuple[Tensor, Tensor]:
    """One row per image with all its crops, and the number of its crop for every token of a row."""
    rows = torch.cat([x.unflatten(0, (-1, images)).transpose(0, 1).flatten(1, 2) for x in sizes], dim=1)
    crops = [c for x in sizes for c in [x.shape[1]] * (len(x) // images)]
    return rows, torch.arange(len(crops)).repeat_interleave(torch.tensor(crops)).to(rows.device)


def _unrow(rows: Tensor, sizes: Sequence[Tensor], images: int) -> list[Tensor]:
    lengths = [x.shape[1] * (len(x) // images) for x in sizes]
    return [
        part.unflatten(1, (-1, x.shape[1])).transpose(0, 1).flatten(0, 1)
        for part, x in zip(rows.split(lengths, dim=1), sizes, strict=True)
    ]


def masked(vit: ViT, sizes: list[Tensor]) -> list[Tensor]:
    """One row per image and a block-diagonal mask between its crops."""
    images = len(sizes[0]) // 2
    x, crop = _rows(sizes, images)
    mask = (crop[:, None] == crop[None, :])[None, None]
    for block in _blocks(vit):
        x = x + block.ls1(block.attn(block.norm1(x), attn_mask=mask))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return _unrow(x, sizes, images)


def flex(vit: ViT, sizes: list[Tensor]) -> list[Tensor]:
    """The same rows with FlexAttention, which skips the blocks of the mask that are empty."""
    images = len(sizes[0]) // 2
    x, crop = _rows(sizes, images)
    length = x.shape[1]
    mask = create_block_mask(
        lambda b, h, i, j: crop[i] == crop[j], None, None, length, length, device=x.device.type
    )
    attention = torch.compile(flex_attention)

    def attend(attn: Any, x: Tensor) -> Tensor:
        q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return attn.proj(attention(q, k, v, block_mask=mask).transpose(1, 2).flatten(-2))

    for block in _blocks(vit):
        x = x + block.ls1(attend(block.attn, block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return _unrow(x, sizes, images)


_INTRODUCTION = """# Packing crops

Made by `explora-bench packing`, a table per run: seconds (of processor time, on a CPU) of the student's
blocks for crops of two sizes.
"""

WAYS: dict[str, Run] = {
    'one call per crop size': separate,
    'one matrix product, attention by size': split_attention,
    'nested tensors': nested,
    'rows with a block-diagonal mask': masked,
    'rows with FlexAttention': flex,
}


def measure_packing(
    out: Path, model: str, images: int, global_size: int, local_size: int, num_local: int, repeats: int
) -> Path:
    """Time forward and backward pass of the student's blocks in every way.

    Ways take turns, and the shortest time of each counts, so that other work on the machine matters less.

    Args:
        out: Folder of `packing.md`, to which a table is added.
        model: Backbone name.
        images: Images per step.
        global_size: Side of the two global crops, pixels.
        local_size: Side of the local crops, pixels.
        num_local: Local crops per image.
        repeats: Turns.

    Returns:
        The Markdown file.
    """
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    vit = create_vit(model, img_size=global_size, dynamic_img_size=True)
    explora(vit, ExPLoRAConfig.parse('[L]-r32')).to(device)
    patch = vit.patch_embed.patch_size
    shapes = [(2 * images, global_size), (num_local * images, local_size)]
    sizes = [torch.randn(n, 1 + (s // patch) ** 2, vit.embed_dim, device=device) for n, s in shapes]
    expected = separate(vit, sizes)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    failed: dict[str, str] = {}
    for _ in range(repeats):
        for name, run in WAYS.items():
            if name in failed:
                continue
            try:
                found, taken = _time(vit, sizes, run, device)
            except (RuntimeError, NotImplementedError) as error:
                failed[name] = str(error).strip().split('\n')[0][:120]
                continue
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
            seconds[name].append(taken)
    where = torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    title = (
        f'{model} [L]-r32, {images} images, 2 global crops of {global_size} px and {num_local} local ones of '
        f'{local_size} px, float32, {where}, PyTorch {torch.__version__}, best of {repeats}'
    )
    lines = ['', title, '', '| way | seconds, forward and backward | of one call per size |', '|---|---|---|']
    base = min(seconds['one call per crop size'])
    for name in WAYS:
        best = min(seconds[name], default=None)
        cells = f'{best:.3f} | {best / base:.2f}' if best is not None else f'does not run: {failed[name]} | -'
        lines.append(f'| {name} | {cells} |')
    path = out / 'packing.md'
    before = path.read_text() if path.exists() else _INTRODUCTION
    with atomic_path(path) as temporary:
        temporary.write_text(before + '\n'.join(lines) + '\n')
    return path


def _time(vit: ViT, sizes: list[Tensor], run: Run, device: str) -> tuple[list[Tensor], float]:
    # Of the processor, only the time that was ours counts: it may have other work.
    clock = time.perf_counter if device == 'cuda' else time.process_time
    vit.zero_grad()
    if device == 'cuda':
        torch.cuda.synchronize()
    start = clock()
    out = run(vit, sizes)
    torch.stack([x[:, 0].square().mean() for x in out]).sum().backward()
    if device == 'cuda':
        torch.cuda.synchronize()
    return [x.detach() for x in out], clock() - start
