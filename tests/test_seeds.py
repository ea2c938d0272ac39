"""Every published data set: pre-train → tune → test → predict, from the committed configurations."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from explora_geo.checkpoints import write_state
from explora_geo.cli import main
from explora_geo.models import create_vit

CONF = Path(__file__).parents[1] / 'benchmarks' / 'conf'
DATA = sorted(p.stem for p in (CONF / 'data').glob('*.yaml'))
MODES = sorted(p.stem for p in (CONF / 'mode').glob('*.yaml'))
CHAINED = {'resisc45': 3, 'naip_landcover': 3, 'spacenet1': 2, 'camelyon17': 2, 'iwildcam': 4}


def call(*args: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert not stop.value.code


def configs(data: str, mode: str) -> list[str]:
    files = [CONF / 'data' / f'{data}.yaml']
    files += [] if mode.startswith('pretrain') else [CONF / 'task' / f'{data}.yaml']
    return [f'--config={f}' for f in (*files, CONF / 'mode' / f'{mode}.yaml')]


@pytest.mark.parametrize(
    ('data', 'mode'), [*((data, 'lora') for data in DATA), *(('resisc45', mode) for mode in MODES)]
)
def test_data_sets_tasks_and_modes_combine(data: str, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    call('fit', *configs(data, mode), '--print_config')
    merged = yaml.safe_load(capsys.readouterr().out)
    task = merged['model']['class_path'].rpartition('.')[2]
    assert task == (
        'ExPLoRATask'
        if mode.startswith('pretrain')
        else 'SegmentationTask'
        if data == 'spacenet1'
        else 'ClassificationTask'
    )
    if mode in ('linear', 'lora', 'full', 'explora'):
        assert merged['model']['init_args']['tuning'] == mode


@pytest.mark.parametrize(
    'data',
    [
        pytest.param(d, marks=pytest.mark.slow if d == 'resisc45' else pytest.mark.group(name='examples'))
        for d in CHAINED
    ],
)
def test_pretrain_tune_test_and_predict_on_a_fake_of_the_true_layout(
    data: str,
    seed_data: Callable[[str], Path],
    small_names: None,
    base_state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    root = seed_data(data)
    base = tmp_path / 'base.safetensors'
    size = 96 if data == 'camelyon17' else 32
    name = f'vit_tiny_patch8_{size}'
    write_state(base, create_vit(name).state_dict(), {'backbone': name})
    common = [
        f'--data.init_args.root={root}',
        f'--data.init_args.image_size={size}',
        '--data.init_args.batch_size=3',
        '--data.init_args.num_workers=0',
        f'--model.init_args.weights={base}',
        f'--model.init_args.model={name}',
        '--trainer.max_epochs=1',
        '--trainer.accumulate_grad_batches=1',
        '--trainer.limit_train_batches=2',
        '--trainer.limit_val_batches=2',
        '--trainer.limit_test_batches=2',
        '--trainer.limit_predict_batches=2',
        '--trainer.logger=false',
        '--trainer.enable_progress_bar=false',
        '--trainer.enable_model_summary=false',
        '--trainer.accelerator=cpu',
    ]
    unlabeled = ['--data.init_args.unlabeled=true'] if data in ('camelyon17', 'iwildcam') else []
    pretrained, tuned = (f'--trainer.default_root_dir={tmp_path / part}' for part in ('pretrain', 'tune'))
    monitor = ['--model.init_args.monitor_features=none']
    call('fit', *configs(data, 'pretrain_mae'), *common, *unlabeled, pretrained, *monitor)
    adapter = tmp_path / 'pretrain' / 'adapter.safetensors'
    classes = f'--model.init_args.num_classes={CHAINED[data]}'
    args = [*configs(data, 'lora'), *common, tuned, f'--model.init_args.adapter={adapter}', classes]
    call('fit', *args)
    checkpoint = f'--ckpt_path={next((tmp_path / "tune").rglob("*.ckpt"))}'
    call('test', *args, checkpoint)
    call('predict', *args, checkpoint, '--return_predictions=false')
    assert (tmp_path / 'tune' / 'model.safetensors').is_file()
    assert 'test_loss' in (tmp_path / 'tune' / 'report.json').read_text()
