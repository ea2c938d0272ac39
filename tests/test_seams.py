"""What one stage writes, the next reads: the same features by the same normalization at every border.

Each case pre-trains a tiny ViT on shipped tiles. What reads its files has data of other statistics, whose
bands have other names and come in another order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import LightningModule, Trainer
from rasterio.transform import from_origin
from torch import Tensor
from torch.testing import assert_close

from explora_geo.bands import match_bands
from explora_geo.checkpoints import load_backbone, merge_adapter, read_adapter, read_state, write_state
from explora_geo.checkpoints.export import export
from explora_geo.datamodules import FMoWTemporalDataModule, FolderDataModule, Statistics
from explora_geo.evaluation.features import cached_features
from explora_geo.maps import MapOptions, Outputs, make_map
from explora_geo.maps.model import open_features
from explora_geo.maps.scene import Scene
from explora_geo.models import ViT, builders, create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.models.matching import match_data
from explora_geo.objectives import MAE, DINOv2
from explora_geo.trainers import ClassificationTask, ExPLoRATask, OptimConfig, load_task
from explora_geo.transforms import ViewsConfig
from tests.conftest import TILES, _load, randomise

MODEL = 'vit_tiny_patch8_32'
RGB = ('red', 'green', 'blue')
NAMES = {'colors': RGB, 'Sentinel-2': ('B04', 'B03', 'B02'), 'letters': ('R', 'G', 'B')}
#: Which names the next stage's data have.
OTHER = {'colors': 'Sentinel-2', 'Sentinel-2': 'letters', 'letters': 'colors'}
OPTIM = OptimConfig(base_lr=0.02, lr_scaling='none', warmup_steps=0)
#: Learning so slow that what is learned does not show.
STILL = OptimConfig(base_lr=1e-12, lr_scaling='none', warmup_steps=0, weight_decay=0)
#: Backbones with a table of positions, with registers beside it, and with rotations in its place.
MODELS = {'table': MODEL, 'registers': 'vit_tiny_patch8_reg4_32', 'rotary': 'vit_small_patch8_dinov3'}
#: Every pair of tokenizer, objective, names and kind of file occurs.
CASES = [
    ('patch', 'M', 'colors', 'adapter'),
    ('patch', 'D', 'Sentinel-2', 'merged'),
    ('patch', 'D', 'letters', 'adapter'),
    ('group-channel', 'D', 'colors', 'merged'),
    ('group-channel', 'M', 'Sentinel-2', 'adapter'),
    ('group-channel', 'M', 'letters', 'merged'),
    ('temporal', 'D', 'colors', 'adapter'),
    ('temporal', 'M', 'Sentinel-2', 'merged'),
    ('temporal', 'D', 'letters', 'adapter'),
    ('patch', 'D', 'colors', 'adapter', 'registers'),
    ('group-channel', 'M', 'colors', 'merged', 'registers'),
    ('patch', 'D', 'Sentinel-2', 'adapter', 'rotary'),
    ('patch', 'M', 'letters', 'merged', 'rotary'),
    ('temporal', 'D', 'colors', 'merged', 'rotary'),
]


def train(
    task: LightningModule, data: Any, folder: Path, steps: int, checkpoint: Path | None = None
) -> Trainer:
    trainer = Trainer(
        accelerator='cpu',
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    return trainer


@dataclass
class Run:
    """A finished pre-training.

    Attributes:
        folder: Its files, `adapter.safetensors` and `last.ckpt` among them.
        base: Weights it started from.
        model: Name of the backbone.
        tokenizer: Kind of tokenizer.
        names: Names of the bands of its data.
        files: Weights and adapter, or the merged model alone.
        task: Makes the task anew, from any weights.
        vit: Backbone that it left behind.
        mean, std: Its normalization, red, green and blue.
    """

    folder: Path
    base: Path
    model: str
    tokenizer: str
    names: str
    files: tuple[Path, Path | None]
    task: Callable[..., ExPLoRATask]
    vit: ViT
    mean: Tensor
    std: Tensor

    def data(self, first: bool = False) -> Any:
        """Data of the pre-training, or of a later stage: other tiles and statistics, names and order."""
        if self.tokenizer == 'temporal':
            bands = NAMES[self.names if first else OTHER[self.names]]
            statistics = Statistics([90, 100, 110], [50, 45, 40]) if first else None
            return FMoWTemporalDataModule(
                self.base.parent / 'fmow',
                num_frames=2,
                bands=bands if first else bands[::-1],
                image_size=32,
                batch_size=4,
                statistics=statistics,
            )
        bands = NAMES[self.names if first else OTHER[self.names]]
        root = self.base.parent / ('tiles' if first else 'other')
        return FolderDataModule(
            root,
            val_root=root,
            file_bands=bands,
            bands=bands if first else [bands[i] for i in (2, 0, 1)],
            image_size=32,
            batch_size=8,
        )

    @torch.no_grad()
    def check(self, vit: ViT, data: Any, atol: float = 1e-5) -> None:
        """Features and normalization of a backbone and its data are those of the pre-training."""
        dataset = data.val_dataset
        samples = [dataset[i] for i in range(3)]
        raw = torch.stack([s['image'] for s in samples])
        times = torch.stack([s['timestamps'] for s in samples]) if self.tokenizer == 'temporal' else None
        colors = raw[..., match_bands(dataset.bands, RGB), :, :]
        image = (colors - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)
        expected = self.vit(image, timestamps=times)
        seen = data.aug({'image': raw})['image']
        assert_close(seen, image, atol=1e-4, rtol=0)
        found = vit.eval()(seen, timestamps=times)
        assert_close(found.cls, expected.cls, atol=atol, rtol=0)
        assert_close(found.patches, expected.patches, atol=atol, rtol=0)

    def matched(self, vit: ViT) -> Any:
        """Data of a later stage, matched with a backbone."""
        data = self.data()
        data.setup('fit')
        match_data(data, vit)
        return data


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two folders of real tiles that differ in their statistics, series of such, and base weights."""
    folder = tmp_path_factory.mktemp('seams')
    for name, classes in (('tiles', ('Forest', 'River')), ('other', ('Residential', 'Industrial'))):
        for label in classes:
            (folder / name / label).mkdir(parents=True)
            for path in sorted((TILES / 'train' / label).glob('*.jpg'))[:8]:
                (folder / name / label / path.name).symlink_to(path)
    _load('fmow').create(folder / 'fmow')
    with pytest.MonkeyPatch.context() as patch:
        for size in ('tiny', 'small'):
            patch.setitem(builders._SIZES, size, (32, 3, 2))
        torch.manual_seed(0)
        for kind, name in MODELS.items():
            vit = randomise(create_vit(name, img_size=32))
            mae = MAE(vit, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
            state = {**vit.state_dict(), **mae.extra_state()}
            write_state(folder / f'{kind}.safetensors', state, {'bands': '["red", "green", "blue"]'})
        yield folder


@pytest.fixture(scope='module', params=CASES, ids='-'.join)
def run(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    tokenizer, letter, names, kind, form = (*request.param, 'table')[:5]
    folder, base, model = tmp_path_factory.mktemp('run'), shared / f'{form}.safetensors', MODELS[form]
    bands = NAMES[names]
    options: dict[str, Any] = {
        'patch': {},
        'group-channel': {'channel_groups': [[bands[0], bands[1]], [bands[2]]]},
        'temporal': {'num_frames': 2},
    }[tokenizer]
    head = HeadConfig(prototypes=32, hidden_dim=16, bottleneck_dim=8)
    views = ViewsConfig(global_size=32, local_size=16, num_local=1)
    objectives = {'M': partial(MAE, decoder_num_heads=2), 'D': partial(DINOv2, head=head, views=views)}

    def task(weights: Path = base, optim: OptimConfig = OPTIM) -> ExPLoRATask:
        return ExPLoRATask(
            model,
            str(weights),
            f'{letter}-[L]-r4',
            objective=objectives[letter],
            optim=optim,
            preset=None,
            bands=bands,
            img_size=32,
            tokenizer=tokenizer,
            tokenizer_options=options,
            monitor_features='none',
        )

    torch.manual_seed(0)
    first = task()
    blank = torch.zeros(3)
    found = Run(folder, base, model, tokenizer, names, (base, None), task, first.backbone, blank, blank)
    data = found.data(first=True)
    train(first, data, folder, 2).save_checkpoint(folder / 'last.ckpt')
    found.mean, found.std = data.mean, data.std
    found.vit = first.model.final_backbone.eval()
    merged = folder / 'merged.safetensors'
    merge_adapter(folder / 'adapter.safetensors', base, merged)
    found.files = (merged, None) if kind == 'merged' else (base, folder / 'adapter.safetensors')
    return found


def opened(run: Run) -> ViT:
    return load_backbone(None, *run.files)


def test_data_of_later_stages_are_others(run: Run) -> None:
    data = run.data()
    data.setup('fit')
    assert data.bands != run.vit.patch_embed.bands
    assert (data.mean[match_bands(data.bands, RGB)] - run.mean).abs().max() > 3
    base = load_backbone(run.model, run.base, img_size=32)
    if run.tokenizer == 'patch':
        with pytest.raises(AssertionError):  # training has changed something
            run.check(base, run.matched(opened(run)), atol=1e-3)


def test_probe(run: Run) -> None:
    vit = opened(run)
    data = run.matched(vit)
    run.check(vit, data)
    table = cached_features(
        None, vit, data.val_dataset, transform=data.aug, collate=data.collate_fn, blocks=1, batch_size=4
    )
    sample = data.collate_fn([data.val_dataset[0]])
    with torch.no_grad():
        expected = run.vit(data.aug(sample)['image'], timestamps=sample.get('timestamps')).cls
    assert_close(table.cls[:1, -1].float(), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize('tuning', ['linear', 'lora', 'full', 'explora'])
def test_tuning_and_its_file(run: Run, tmp_path: Path, tuning: Any) -> None:
    data = run.data()
    data.setup('fit')
    weights, adapter = run.files
    task = ClassificationTask(
        num_classes=len(data.train_dataset.classes),
        weights=str(weights),
        adapter=adapter and str(adapter),
        tuning=tuning,
        optim=STILL,
        tokens='cls',
    )
    train(task, data, tmp_path, 1)
    run.check(task.model.backbone, data, atol=1e-4)
    tuned = load_task(tmp_path / 'model.safetensors')
    run.check(tuned.model.backbone, data, atol=1e-4)
    order = match_bands(tuned.data['bands'], RGB)
    for name, expected in (('mean', run.mean), ('std', run.std)):
        assert_close(torch.tensor(tuned.data[name])[order], expected, atol=1e-4, rtol=0)


def test_map(run: Run, tmp_path: Path) -> None:
    if run.tokenizer == 'temporal':
        pytest.skip('a map is made of one scene')
    data = run.data()
    data.setup('fit')
    raw = data.val_dataset[0]['image']  # as the file of a scene has them, one tile large
    profile = {'count': 3, 'height': 32, 'width': 32, 'dtype': 'float32', 'crs': 'EPSG:32631'}
    path = tmp_path / 'scene.tif'
    with rasterio.open(path, 'w', transform=from_origin(0, 0, 10, 10), **profile) as target:
        target.write(raw.numpy())
    vit = opened(run)
    scene = Scene(path, vit.patch_embed.bands, data.val_dataset.bands)
    model = open_features(vit)
    assert model.data['mean'] == pytest.approx(run.mean.tolist())
    make_map(scene, model, Outputs(embeddings=tmp_path / 'e.tif'), MapOptions(statistics='model'))
    image = (raw[match_bands(data.val_dataset.bands, RGB)] - run.mean.view(3, 1, 1)) / run.std.view(3, 1, 1)
    with torch.no_grad():
        expected = run.vit(image[None]).patches[0].mean(0)
    with rasterio.open(tmp_path / 'e.tif') as source:
        found = source.read()
    np.testing.assert_allclose(found.reshape(32, 16).T, expected.numpy(), atol=1e-4)


def test_export(run: Run, tmp_path: Path) -> None:
    path = tmp_path / 'exported.safetensors'
    if run.tokenizer != 'patch':
        with pytest.raises(ValueError, match='timm has no model with tokenizer'):
            export(opened(run), run.model, path)
        return
    export(opened(run), run.model, path)
    vit = load_backbone(None, path)
    assert vit.name == run.model
    run.check(vit, run.matched(vit))


def test_resuming(run: Run, tmp_path: Path) -> None:
    task, data = run.task(), run.data(first=True)
    train(task, data, tmp_path, 2, run.folder / 'last.ckpt')
    run.check(task.model.final_backbone, data)
    train(run.task(), data, tmp_path, 3, run.folder / 'last.ckpt')
    (header, _), (again, _) = (read_adapter(f / 'adapter.safetensors') for f in (run.folder, tmp_path))
    assert again.normalization == header.normalization is not None
    assert again.base_sha256 == header.base_sha256


def test_a_second_adaptation(run: Run, tmp_path: Path) -> None:
    merged = run.folder / 'merged.safetensors'
    task, data = run.task(merged, STILL), run.data()
    train(task, data, tmp_path, 1)
    run.check(task.model.final_backbone, data, atol=1e-4)
    vit = load_backbone(None, merged, tmp_path / 'adapter.safetensors')
    run.check(vit, run.matched(vit), atol=1e-4)


def test_another_image_size(run: Run) -> None:
    weights, adapter = run.files
    vit = load_backbone(None, weights, adapter, img_size=48)
    plain = load_backbone(None, run.folder / 'merged.safetensors', img_size=48)
    assert vit.normalization == plain.normalization is not None
    for name, tensor in vit.state_dict().items():
        assert_close(tensor, plain.state_dict()[name], atol=1e-6, rtol=0)
    stated = read_state(run.folder / 'merged.safetensors')[1]
    assert 'normalization' in stated and str(48) not in stated['sizes']
