"""Files of tuned models that must not be used are refused in one sentence, before memory is taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from explora_geo.checkpoints import read_state, write_state
from explora_geo.models import create_vit
from explora_geo.models.vit import ViT
from explora_geo.trainers import ClassificationTask, SegmentationTask, load_task, save_task, tuning

MODEL = 'vit_tiny_patch8_32'
State = dict[str, torch.Tensor]


@pytest.fixture
def file(small_names: None, tmp_path: Path) -> Path:
    """A tuned model of three classes that learnt nothing."""
    task = ClassificationTask(model=MODEL, tuning='lora', num_classes=3)
    task.data = {'classes': ['a', 'b', 'c']}
    save_task(tmp_path / 'model.safetensors', task.eval())
    return tmp_path / 'model.safetensors'


@pytest.fixture
def checkpoint(small_names: None, tmp_path: Path) -> Path:
    """The same as Lightning's checkpoint, LoRA and counters included."""
    task = ClassificationTask(model=MODEL, tuning='lora', num_classes=3)
    content = {
        'explora_geo': {'task': 'ClassificationTask', 'data': {}},
        'hyper_parameters': dict(task.hparams),
        'state_dict': task.state_dict(),
    }
    torch.save(content, tmp_path / 'last.ckpt')
    return tmp_path / 'last.ckpt'


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is built with numbers."""

    def build(*args: Any, **kwargs: Any) -> ViT:
        vit = create_vit(*args, **kwargs)
        assert vit.cls_token.is_meta, 'memory was taken'
        return vit

    monkeypatch.setattr(tuning, 'create_vit', build)


def restate(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a file says of itself, and leave its tensors."""
    state, metadata = read_state(path)
    header = json.loads(metadata['task'])
    changed = change(header) or header
    write_state(path, state, {**metadata, 'task': json.dumps(changed)})


def test_an_older_file_says_colours(file: Path) -> None:
    restate(file, lambda header: header['data'].update(colours=[[1, 2, 3]] * 3))
    assert load_task(file).data == {'classes': ['a', 'b', 'c'], 'colors': [[1, 2, 3]] * 3}


def hparams(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header['hparams'].update(values)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    'image': (hparams(img_size=10**6), '256 patches per side, got 1000000 and 8'),
    'image as text': (hparams(img_size='32'), "256 patches per side, got '32' and 8"),
    'image unstated': (lambda header: header['hparams'].pop('img_size') and None, "'img_size' is missing"),
    'patch': (hparams(patch_size=-8), '256 patches per side, got 32 and -8'),
    'classes': (
        hparams(num_classes=10**9),
        r'head\.bias of shape \(3,\), but the model expects \(1000000000,\)',
    ),
    'no class': (hparams(num_classes=0), 'num_classes must be at least 2'),
    'frames': (
        hparams(tokenizer='temporal', tokenizer_options={'num_frames': 10**12}, slots='concat'),
        r'model\.safetensors',
    ),
    'architecture': (hparams(model='vit_large_patch8_32'), r'model\.safetensors is missing .*\d+ missing'),
    'bands': (
        hparams(bands=['red']),
        r'proj\.weight of shape \(32, 3, 8, 8\), but the model expects \(32, 1, 8, 8\)',
    ),
    'unknown': (hparams(model='resnet50'), 'unknown backbone'),
    'argument': (hparams(nonsense=1), 'nonsense'),
    'task': (lambda header: {**header, 'task': 'Trainer'}, "unknown task 'Trainer'"),
    'abstract task': (lambda header: {**header, 'task': 'TuningTask'}, "unknown task 'TuningTask'"),
    'task of another kind': (lambda header: {**header, 'task': 'SegmentationTask'}, r'model\.safetensors'),
    'no mapping': (lambda header: [header], 'indices must be integers'),
    'no hparams': (lambda header: {**header, 'hparams': None}, 'incomplete or damaged'),
    'data': (lambda header: {**header, 'data': [1]}, 'incomplete or damaged'),
    'classes of no list': (lambda header: {**header, 'data': {'classes': 5}}, 'classes is not a list'),
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_a_file_that_says_nonsense_of_itself(file: Path, nothing_is_built: None, kind: str) -> None:
    change, sentence = HOSTILE[kind]
    restate(file, change)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_task(file)
    assert str(file) in str(caught.value) and '\n' not in str(caught.value)


def test_weights_that_a_file_names_are_not_opened(file: Path, tmp_path: Path) -> None:
    restate(file, hparams(weights=str(tmp_path / 'missing.pth'), adapter='a.safetensors', _instantiator='x'))
    assert load_task(file).data['classes'] == ['a', 'b', 'c']


BAD_TENSORS: dict[str, tuple[Callable[[State], Any], str]] = {
    'nan': (lambda state: state['head.weight'].fill_(torch.nan), r'non-finite values in head\.weight'),
    'missing': (lambda state: state.pop('head.bias'), r'is missing head\.bias'),
    'unknown': (lambda state: state.update(more=torch.ones(2)), 'contains unknown more'),
    'quantised': (
        lambda state: state.update({'head.bias': torch.ones(3, dtype=torch.int8)}),
        r'head\.bias as int8',
    ),
    'counter': (
        lambda state: state.update({'norm.num_batches_tracked': torch.ones((), dtype=torch.bool)}),
        'num_batches_tracked as bool',
    ),
}


@pytest.mark.parametrize('kind', BAD_TENSORS)
def test_tensors_that_are_not_those_of_the_model(file: Path, nothing_is_built: None, kind: str) -> None:
    change, sentence = BAD_TENSORS[kind]
    state, metadata = read_state(file)
    change(state)
    write_state(file, state, metadata)
    with pytest.raises(ValueError, match=rf'model\.safetensors .*{sentence}'):
        load_task(file)


def test_a_checkpoint_is_read_as_it_was_written(checkpoint: Path) -> None:
    written, loaded = torch.load(checkpoint)['state_dict'], load_task(checkpoint).state_dict()
    assert list(written) == list(loaded) and all(torch.equal(written[k], v) for k, v in loaded.items())
    assert any('lora' in k for k in loaded)


def _stretch(content: dict[str, Any]) -> None:
    """One number that says it is the head of an enormous number of classes."""
    content['hyper_parameters']['num_classes'] = 10**9
    content['state_dict']['model.head.weight'] = torch.zeros(1, 1).expand(10**9, 32)
    content['state_dict']['model.head.bias'] = torch.zeros(1).expand(10**9)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (
            lambda content: content['hyper_parameters'].update(img_size=10**6),
            '256 patches per side, got 1000000 and 8',
        ),
        (lambda content: content['hyper_parameters'].update(model='vit_large_patch8_32'), 'is missing model'),
        (
            lambda content: content['state_dict']['model.head.weight'].fill_(torch.inf),
            'non-finite values in model',
        ),
        (lambda content: content['state_dict'].pop('model.head.weight'), r'is missing model\.head\.weight'),
        (lambda content: content['explora_geo'].update(task='ExPLoRATask'), "unknown task 'ExPLoRATask'"),
        (lambda content: content.pop('hyper_parameters'), "'hyper_parameters' is missing"),
        (lambda content: content.update(state_dict=5), 'incomplete or damaged'),
        (lambda content: content.update(state_dict={}), 'contains no tensors'),
        (_stretch, 'larger than the file'),
    ],
    ids=['image', 'architecture', 'infinite', 'missing', 'task', 'hparams', 'number', 'empty', 'stretched'],
)
def test_a_checkpoint_that_does_not_fit(
    checkpoint: Path, nothing_is_built: None, change: Callable[[dict[str, Any]], Any], sentence: str
) -> None:
    content = torch.load(checkpoint)
    change(content)
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_task(checkpoint)
    assert str(checkpoint) in str(caught.value) and '\n' not in str(caught.value)


def test_a_checkpoint_calls_nothing_that_it_names(checkpoint: Path) -> None:
    content = torch.load(checkpoint)
    content['hyper_parameters'] |= {'_instantiator': 'os.abort', '_class_path': 'os', 'weights': 'x.pth'}
    torch.save(content, checkpoint)
    assert load_task(checkpoint).outputs == 3  # type: ignore[attr-defined]


def test_a_model_of_pixels_is_held_against_its_own_head(small_names: None, tmp_path: Path) -> None:
    task = SegmentationTask(model=MODEL, tuning='full', num_classes=2, head='linear')
    save_task(tmp_path / 'model.safetensors', task.eval())
    restate(tmp_path / 'model.safetensors', hparams(head='upernet', head_channels=1 << 20))
    with pytest.raises(ValueError, match=r'model\.safetensors'):
        load_task(tmp_path / 'model.safetensors')
