"""Files that other libraries load: timm's keys, TorchGeo's checkpoints, exported programs."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explora_geo.checkpoints.files import atomic_path, write_state
from explora_geo.checkpoints.metadata import model_metadata
from explora_geo.models.vit import ViT

# Formats of backbones alone
_FILES = ('.safetensors', '.ckpt')


def export(module: nn.Module, name: str, out: str | Path) -> float | None:
    """Write a backbone or a tuned model in the format that the ending names.

    Args:
        module: Backbone without LoRA; or, for programs, the model of a tuned task.
        name: Name of the backbone.
        out: File to write: `.safetensors` (timm) or `.ckpt` (TorchGeo) of a backbone, or a program, `.pt2` or
            `.onnx`, of either.

    Returns:
        The largest absolute difference between torch and onnxruntime, of `.onnx` alone.

    Raises:
        ValueError: If no format has the ending, or the format cannot hold the module.
    """
    vit: ViT = module if isinstance(module, ViT) else module.backbone  # type: ignore[assignment]
    suffix = check_format(out, backbone=module is vit)
    if suffix in _FILES:
        (export_timm if suffix == '.safetensors' else export_torchgeo)(vit, name, out)
        return None
    if vit.patch_embed.kind == 'temporal':
        raise ValueError('programs take one image tensor: series with timestamps cannot be exported')
    side = vit.patch_embed.grid_size[0] * vit.patch_embed.patch_size
    example = torch.randn(2, len(vit.patch_embed.bands), side, side)
    if suffix == '.onnx':
        return export_onnx(module, example, out)
    export_program(module, example, out)
    return None


def check_format(out: str | Path, backbone: bool = True) -> str:
    """The ending of a file to write.

    Args:
        out: The file.
        backbone: Whether a backbone is exported, and not a tuned model.

    Raises:
        ValueError: If no format has the ending, or its format holds no tuned model.
    """
    suffix = Path(out).suffix
    if suffix not in (*_FILES, '.pt2', '.onnx'):
        raise ValueError(f'cannot write {Path(out).name}: files end in .safetensors, .ckpt, .pt2 or .onnx')
    if suffix in _FILES and not backbone:
        raise ValueError(f'{suffix} files hold a backbone: give weights, or write .pt2 or .onnx')
    return suffix


def export_timm(vit: ViT, name: str, out: str | Path) -> None:
    """Write a plain or merged backbone with timm's keys.

    `timm.create_model(name, num_classes=0, …).load_state_dict(load_file(out))` takes it strictly, as does
    the `model` of a `tu-` encoder of segmentation-models-pytorch.

    Args:
        vit: Backbone without LoRA.
        name: Its name.
        out: File to write, `.safetensors`.

    Raises:
        ValueError: If timm has no such model.
    """
    write_state(out, _timm_state(vit), model_metadata(vit, name))


def export_torchgeo(vit: ViT, name: str, out: str | Path) -> None:
    """Write a Lightning checkpoint as `weights` of TorchGeo's ClassificationTask and RegressionTask.

    Args:
        vit: Backbone without LoRA.
        name: Its name, which TorchGeo's task is given as `model`.
        out: File to write, `.ckpt`.

    Raises:
        ValueError: If timm has no such model.
    """
    content = {
        'hyper_parameters': {'model': name.split('.')[0]},
        'state_dict': {f'model.{k}': v for k, v in _timm_state(vit).items()},
    }
    with atomic_path(out) as temporary:
        torch.save(content, temporary)


def _timm_state(vit: ViT) -> dict[str, Tensor]:
    tokenizer = vit.patch_embed
    if tokenizer.kind != 'patch':
        raise ValueError(
            f'timm has no model with the tokenizer {tokenizer.kind}: export a program instead, or use the '
            'file with load_backbone'
        )
    state = {k: v.detach().cpu() for k, v in vit.state_dict().items()}
    state.pop('mask_token', None)  # only pre-training reads it
    lora = [k for k in state if '.lora_' in k]
    if lora:
        raise ValueError(f'the backbone carries LoRA ({lora[0]}): merge it first')
    return state


class _Outputs(nn.Module):
    """A backbone whose outputs are plain tensors."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Class token and patch tokens."""
        cls, patches = self.vit(image)
        return cls, patches


def export_program(module: nn.Module, example: Tensor, out: str | Path) -> None:
    """Write a program of `torch.export`, for any number of images.

    Args:
        module: Module of one image tensor; a `ViT` returns class and patch tokens.
        example: Two or more images.
        out: File to write, `.pt2`; `torch.export.load(out).module()` runs it.
    """
    program = _exported(module, example)
    with atomic_path(out) as temporary, temporary.open('wb') as file:
        torch.export.save(program, file)


def export_onnx(module: nn.Module, example: Tensor, out: str | Path) -> float:
    """Write an ONNX model, for any number of images, and compare it with onnxruntime.

    Args:
        module: Module of one image tensor; a `ViT` returns class and patch tokens.
        example: Two or more images.
        out: File to write, `.onnx`.

    Returns:
        The largest absolute difference between torch and onnxruntime on the example.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
    """
    missing = [n for n in ('onnx', 'onnxscript', 'onnxruntime') if importlib.util.find_spec(n) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}: pip install "explora_geo[onnx]"')
    runtime: Any = importlib.import_module('onnxruntime')
    program = _exported(module, example)
    with atomic_path(out) as temporary:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of versions inside the exporter
            torch.onnx.export(program, (), dynamo=True, verbose=False).save(str(temporary))  # type: ignore[union-attr]
        session = runtime.InferenceSession(str(temporary), providers=['CPUExecutionProvider'])
        found = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    with torch.no_grad():
        expected = program.module()(example)
    expected = expected if isinstance(expected, tuple) else (expected,)
    return max(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, expected, strict=True))


def _exported(module: nn.Module, example: Tensor) -> Any:
    plain = (_Outputs(module) if isinstance(module, ViT) else module).eval()
    batch = torch.export.Dim('batch', min=1)
    with torch.no_grad():
        return torch.export.export(plain, (example,), dynamic_shapes=({0: batch},))
