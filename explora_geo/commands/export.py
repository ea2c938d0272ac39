"""`explora-geo export`: files that other libraries load."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    out: Annotated[Path, typer.Argument(help='File: .safetensors (timm), .ckpt (TorchGeo), .pt2, .onnx.')],
    weights: Annotated[
        str | None, typer.Option(help='Backbone: a file, a shipped name or timm/<name>.')
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help='Adapter file made on these weights.')] = None,
    model: Annotated[str | None, typer.Option(help='Backbone name, if the file does not state it.')] = None,
    tuned: Annotated[Path | None, typer.Option(help='Tuned model instead, for .pt2 and .onnx.')] = None,
) -> None:
    """Export a backbone with its adapter merged, or a tuned model.

    Example: explora-geo export model.safetensors --weights base.safetensors --adapter adapter.safetensors
    """
    import torch
    from rich.console import Console

    from explora_geo.checkpoints import export as exports
    from explora_geo.checkpoints import open_backbone
    from explora_geo.trainers import load_task

    if (weights is None) == (tuned is None):
        raise ValueError('give either weights, a backbone, or tuned, a tuned model')
    if tuned is not None and (adapter or model):
        raise ValueError('adapter and model belong to weights: a tuned model holds all of its own')
    programs = {'.pt2': exports.export_program, '.onnx': exports.export_onnx}
    files = {'.safetensors': exports.export_timm, '.ckpt': exports.export_torchgeo}
    if out.suffix not in {**programs, **files}:
        raise ValueError(f'cannot write {out.name}: files end in .safetensors, .ckpt, .pt2 or .onnx')
    console = Console()
    module: torch.nn.Module
    if tuned is not None:
        if out.suffix in files:
            raise ValueError(f'{out.suffix} files hold a backbone: give weights, or write .pt2 or .onnx')
        predictor = load_task(tuned).model
        module, vit, name = predictor, predictor.backbone, ''
    else:
        vit, name = open_backbone(str(weights), adapter, model)
        module = vit
    if out.suffix in files:
        files[out.suffix](vit, name, out)
        console.print(f'{out}: {name} with the keys of timm', markup=False, soft_wrap=True)
        return
    if vit.patch_embed.kind == 'temporal':
        raise ValueError('programs take one image tensor: series with timestamps cannot be exported')
    side = vit.patch_embed.grid_size[0] * vit.patch_embed.patch_size
    example = torch.randn(2, len(vit.patch_embed.bands), side, side)
    difference = programs[out.suffix](module, example, out)
    checked = '' if difference is None else f', at most {difference:.1e} from torch in onnxruntime'
    console.print(
        f'{out}: images of {side} px, any number{checked}', markup=False, highlight=False, soft_wrap=True
    )
