"""Export to the formats of timm, TorchGeo, transformers and PEFT, and to compiled programs."""

import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from explora_geo._atomic import write_text
from explora_geo.adaptation import LoRALinear, explora
from explora_geo.checkpoints.adapter import AdapterHeader, read_adapter
from explora_geo.checkpoints.convert import to_hugging_face
from explora_geo.checkpoints.facts import model_metadata
from explora_geo.checkpoints.files import atomic_path, write_state
from explora_geo.checkpoints.sharing import model_card
from explora_geo.models.vit import ViT

# Formats for backbones only
_FILES = ('.safetensors', '.ckpt')


def export(module: nn.Module, name: str, out: str | Path) -> float | None:
    """Write a backbone or a tuned model in the format given by the file extension.

    - `.safetensors`: a backbone with timm's keys; loads strictly into timm's model of this name and into the
      `model` of a `tu-` encoder of segmentation-models-pytorch.
    - `.ckpt`: `weights` for TorchGeo's ClassificationTask and RegressionTask, with the name as `model`.
    - `.pt2`: a program for any number of images, run by `torch.export.load(out).module()`; a backbone
      returns class and patch tokens.
    - `.onnx`: the same program as an ONNX model, checked with onnxruntime.

    Args:
        module: Backbone without LoRA; or, for programs, the model of a tuned task.
        name: Name of the backbone.
        out: File to write.

    Returns:
        The largest absolute difference between torch and onnxruntime for `.onnx`, otherwise None.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is not installed for `.onnx`.
        ValueError: If no format has the extension, or the format cannot hold the module.
    """
    vit: ViT = module if isinstance(module, ViT) else module.backbone  # type: ignore[assignment]
    suffix = check_format(out, backbone=module is vit)
    if suffix == '.safetensors':
        write_state(out, _timm_state(vit), model_metadata(vit, name))
    elif suffix == '.ckpt':
        state = {f'model.{k}': v for k, v in _timm_state(vit).items()}
        with atomic_path(out) as temporary:
            torch.save({'hyper_parameters': {'model': name.split('.')[0]}, 'state_dict': state}, temporary)
    else:
        return _export_program(module, vit, Path(out))
    return None


def check_request(
    out: Path, layout: str, weights: str | None, adapter: Path | None, model: str | None, tuned: Path | None
) -> None:
    """Raise ValueError unless the arguments name one thing to export, in a format that can hold it."""
    sentence = ''
    if layout not in ('', 'peft', 'transformers'):
        sentence = f'format must be peft or transformers (others follow the file extension), got {layout}'
    elif layout == 'transformers' and (weights is None or tuned):
        sentence = 'format transformers exports a backbone: pass weights, not tuned'
    elif layout == 'peft' and (adapter is None or tuned):
        sentence = 'format peft exports an adapter: pass adapter, not tuned'
    elif not layout and (weights is None) == (tuned is None):
        sentence = 'pass either weights (a backbone) or tuned (a tuned model)'
    elif tuned and (adapter or model):
        sentence = 'adapter and model cannot be combined with tuned: a tuned model already contains its own'
    if sentence:
        raise ValueError(sentence)
    if not layout:
        check_format(out, backbone=tuned is None)


def check_format(out: str | Path, backbone: bool = True) -> str:
    """Return the extension of the file to write for a backbone or a tuned model.

    Raises:
        ValueError: If no format has the extension, or its format cannot hold a tuned model.
    """
    suffix = Path(out).suffix
    if suffix not in (*_FILES, '.pt2', '.onnx'):
        raise ValueError(f'cannot write {Path(out).name}: use extension .safetensors, .ckpt, .pt2 or .onnx')
    if suffix in _FILES and not backbone:
        raise ValueError(f'{suffix} files contain only a backbone: pass weights, or write .pt2 or .onnx')
    return suffix


def _timm_state(vit: ViT) -> dict[str, Tensor]:
    if vit.patch_embed.kind != 'patch':
        raise ValueError(_no_timm(vit.patch_embed.kind))
    state = _plain_state(vit)
    state.pop('mask_token', None)  # only used in pre-training
    if 'reg_token' in state and 'pos_embed' in state:  # timm folds the position into the class token
        state['cls_token'] = state['cls_token'] + state['pos_embed'][:, :1]
        state['pos_embed'] = state['pos_embed'][:, 1:]
    return state


def _plain_state(vit: ViT) -> dict[str, Tensor]:
    """Return a backbone's tensors on the CPU; raise ValueError if it carries LoRA."""
    state = {k: v.detach().cpu() for k, v in vit.state_dict().items()}
    if lora := next((k for k in state if '.lora_' in k), ''):
        raise ValueError(f'the backbone contains unmerged LoRA ({lora}): merge it first')
    return state


def export_transformers(vit: ViT, out: str | Path) -> str:
    """Write a backbone as `config.json` and `model.safetensors` of Hugging Face's transformers.

    Args:
        vit: DINOv2 or DINOv3 backbone without LoRA; any other raises ValueError.
        out: Folder to write.

    Returns:
        The transformers class whose `from_pretrained(out)` loads it.
    """
    state = _plain_state(vit)
    scaled = any(k.endswith(('.ls1.gamma', '.gamma_1')) for k in state)
    if vit.patch_embed.kind != 'patch' or not scaled or 'norm.weight' not in state:
        raise ValueError(
            'format transformers supports only DINOv2 and DINOv3 backbones with tokenizer patch: write '
            '.safetensors for timm, or a program (.pt2 or .onnx)'
        )
    name, config = _transformers_config(vit, state)
    shape = (1, 1, -1) if vit.rope is not None else (1, -1)
    state['mask_token'] = state.get('mask_token', torch.zeros(vit.embed_dim)).reshape(shape)
    named = to_hugging_face(state, config.get('use_swiglu_ffn', False))
    folder = Path(out)
    write_state(folder / 'model.safetensors', named, {'format': 'pt'})
    write_text(folder / 'config.json', json.dumps(config, indent=1))
    return name


def _transformers_config(vit: ViT, state: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the transformers class and its configuration."""
    tokenizer, registers = vit.patch_embed, vit.num_prefix_tokens - 1
    hidden = len(state['blocks.0.mlp.fc1.bias'])
    if vit.rope is not None:
        name, kind = 'DINOv3ViTModel', 'dinov3_vit'
        bias = 'blocks.0.attn.q_bias' in state
        more: dict[str, Any] = {'query_bias': bias, 'key_bias': False, 'value_bias': bias}
        more |= {'intermediate_size': hidden, 'rope_theta': vit.rope.config.base}
    else:
        name, kind = 'Dinov2Model', 'dinov2'
        if registers:
            name, kind = 'Dinov2WithRegistersModel', 'dinov2_with_registers'
        gated = hidden != state['blocks.0.mlp.fc2.weight'].shape[1]
        more = {'use_swiglu_ffn': gated, 'mlp_ratio': 4}
    return name, {
        'architectures': [name],
        'model_type': kind,
        'hidden_size': vit.embed_dim,
        'num_hidden_layers': vit.depth,
        'num_attention_heads': vit.blocks[0].attn.num_heads,  # type: ignore[union-attr]
        'image_size': tokenizer.img_size,
        'patch_size': tokenizer.patch_size,
        'num_channels': len(tokenizer.bands),
        'layer_norm_eps': vit.norm.eps,
        **({'num_register_tokens': registers} if registers else {}),
        **more,
    }


class _Outputs(nn.Module):
    """Backbone wrapper that returns plain tensors."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token and the patch tokens."""
        found = self.vit(image)
        return found.cls, found.patches


def _export_program(module: nn.Module, vit: ViT, out: Path) -> float | None:
    """Write a `.pt2` or `.onnx` program; see `export`."""
    tokenizer = vit.patch_embed
    if tokenizer.kind == 'temporal':
        raise ValueError('programs take one image tensor: series with timestamps cannot be exported')
    needed = ('onnx', 'onnxscript', 'onnxruntime') if out.suffix == '.onnx' else ()
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ImportError(f'ONNX needs {", ".join(missing)}: pip install "explora_geo[onnx]"')
    example = torch.randn(2, len(tokenizer.bands), tokenizer.img_size, tokenizer.img_size)
    plain = (_Outputs(module) if isinstance(module, ViT) else module).eval()
    batch = torch.export.Dim('batch', min=1)
    with torch.no_grad():
        program = torch.export.export(plain, (example,), dynamic_shapes=({0: batch},))
        expected = program.module()(example)
    with atomic_path(out) as temporary:
        if out.suffix == '.pt2':
            with temporary.open('wb') as file:
                torch.export.save(program, file)
            return None
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about versions inside the exporter
            torch.onnx.export(program, (), dynamo=True, verbose=False).save(str(temporary))  # type: ignore[union-attr]
        runtime: Any = importlib.import_module('onnxruntime')
        session = runtime.InferenceSession(str(temporary), providers=['CPUExecutionProvider'])
        found = session.run(None, {session.get_inputs()[0].name: example.numpy()})
    expected = expected if isinstance(expected, tuple) else (expected,)
    return max(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, expected, strict=True))


def export_peft(
    adapter: str | Path, out: str | Path, report: str | Path | None = None, license: str | None = None
) -> list[str]:
    """Write an adapter in PEFT's layout, for `PeftModel.from_pretrained` on timm's model of the base.

    PEFT adapts whole layers: our updates of Q and V, of rank r each, become one update of the fused `qkv` of
    rank 2r whose rows for K are zero. Fully trained modules go to `modules_to_save`; PEFT cannot save bare
    parameters, such as a class token, so these go to `parameters.safetensors`, as the card explains. For
    report and license, see `model_card`.

    Returns:
        Names of the bare parameters.

    Raises:
        ValueError: If it is not an adapter, has no LoRA, or timm has no such model.
    """
    header, state = read_adapter(adapter)
    with torch.device('meta'):
        vit = explora(header.build(), header.explora_config)
    if reason := _no_peft(header, state, set(vit.state_dict())):
        raise ValueError(f'{adapter}: {reason}')
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, layer in vit.named_modules():
        if isinstance(layer, LoRALinear):
            a, b = _whole_update(layer, name, state)
            tensors |= {f'{name}.lora_A.weight': a, f'{name}.lora_B.weight': b}
            ranks[name], alphas[name] = len(a), layer.scale * len(a)
    plain = {k: v.float() for k, v in state.items() if '.lora_' not in k}
    owners = sorted({name.rpartition('.')[0] for name in plain} - {''})
    whole = [
        m for m in owners if all(f'{m}.{k}' in plain for k, _ in vit.get_submodule(m).named_parameters())
    ]
    modules = [m for m in whole if not any(m.startswith(f'{other}.') for other in whole)]
    bare = {k: v for k, v in plain.items() if not any(k.startswith(f'{m}.') for m in modules)}
    tensors |= {k: v for k, v in plain.items() if k not in bare}
    config = {
        'peft_type': 'LORA',
        'task_type': None,
        'base_model_name_or_path': header.base or None,
        'r': (rank := max(ranks.values())),
        'lora_alpha': (alpha := max(alphas.values())),
        'lora_dropout': header.explora_config.dropout,
        'target_modules': list(ranks),
        'rank_pattern': {k: v for k, v in ranks.items() if v != rank},
        'alpha_pattern': {k: v for k, v in alphas.items() if v != alpha},
        'modules_to_save': modules or None,
        'bias': 'none',
        'inference_mode': True,
    }
    card = model_card(adapter, report, license, _peft_usage(header, list(bare)))
    folder = Path(out)
    named = {f'base_model.model.{k}': v.float() for k, v in tensors.items()}
    write_state(folder / 'adapter_model.safetensors', named, {'format': 'pt'})
    if bare:
        write_state(folder / 'parameters.safetensors', bare, {'format': 'pt'})
    for name, text in (('adapter_config.json', json.dumps(config, indent=1)), ('README.md', card)):
        write_text(folder / name, text)
    return list(bare)


def _whole_update(layer: LoRALinear, name: str, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A with all slices stacked, and B with each slice's block in its rows and zeros elsewhere."""
    a = [state[f'{name}.lora_a.{part}'].float() for part in layer.slices]
    b = torch.zeros(layer.out_features, layer.rank * len(a))
    for i, (part, (start, stop)) in enumerate(layer.slices.items()):
        b[start:stop, i * layer.rank : (i + 1) * layer.rank] = state[f'{name}.lora_b.{part}']
    return torch.cat(a), b


def _peft_usage(header: AdapterHeader, bare: Sequence[str]) -> str:
    model, _, depth = header.backbone.partition('.')[0].partition('_depth')
    options = f'num_classes=0, img_size={header.img_size}, patch_size={header.patch_size}'
    options += f', in_chans={len(header.bands)}' + (f', depth={depth}' if depth else '')
    config = header.explora_config
    lines = [
        '## Use\n\n```python\nimport timm\nfrom peft import PeftModel',
        'from safetensors.torch import load_file\n',
        f'model = timm.create_model({model!r}, {options})',
        f'# explora-geo export base.safetensors --weights {header.base or "THE_BASE"}',
        "model.load_state_dict(load_file('base.safetensors'))",
        "model = PeftModel.from_pretrained(model, '.').eval()\n```\n",
        f'LoRA of rank {config.rank} on each of {", ".join(config.targets)}: in a fused `qkv` the ranks add '
        'up, and B is zero in all other rows.',
    ]
    if bare:
        lines.insert(5, "model.load_state_dict(load_file('parameters.safetensors'), strict=False)")
        lines.append(
            f'`parameters.safetensors` contains the trained {", ".join(bare)}: PEFT saves modules, but not '
            'bare parameters. Without this file the features differ.'
        )
    return '\n'.join(lines)


def _no_peft(header: AdapterHeader, state: Mapping[str, Tensor], own: set[str]) -> str:
    """Return why PEFT on timm's model cannot reproduce the adapter's features, or an empty string."""
    merge = 'merge it into its base and export the merged model'
    if header.tokenizer != 'patch':
        return _no_timm(header.tokenizer)
    if not any('.lora_' in name for name in state):
        return f'it contains no LoRA, which PEFT needs: {merge}'
    if any(name.endswith('.attn.q_bias') for name in own):
        return f'if Q and V have separate biases, timm bypasses what PEFT adds to qkv: {merge}'
    folded = {'reg_token', 'pos_embed'} <= own and not header.base.startswith('timm/')
    if folded and 'cls_token' in state:
        return f'with registers, timm adds the position to the class token, which was trained here: {merge}'
    return ''


def _no_timm(tokenizer: str) -> str:
    return (
        f'timm has no model with tokenizer {tokenizer}: export a program (.pt2 or .onnx), or load the file '
        'with load_backbone'
    )
