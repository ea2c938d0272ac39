"""The first stage: source weights as a backbone that the table's images fit."""

import functools
from typing import Any

import torch

from explora_geo.checkpoints import load_backbone, load_weights, model_metadata, state_sha256, write_state
from explora_geo.checkpoints.sources import read_weights
from explora_geo.models import ViT, create_vit
from explora_geo.models.weights import all_weights

from .jobs import Job
from .scales import Source
from .stages import Stage, Store

MODEL = 'model.safetensors'


@functools.lru_cache(maxsize=16)
def weights_sha256(weights: str) -> str:
    """Hash of the numbers of source weights, whatever file they are in.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        return state_sha256(read_weights(weights)[0])
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{error}: make the source first, or name another one in the scale (sources)'
        ) from error


def backbone_options(source: Source, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `create_vit`, with those that named weights state."""
    entry = all_weights().get(source.weights)
    stated = {} if entry is None else entry.meta.get('tokenizer_options', {})
    return {**options, **({'tokenizer_options': stated} if stated else {})}


def prepare_source(store: Store, job: Job) -> Stage:
    """The stage of what a row starts from; random weights are those of the row's seed."""
    source = job.source
    options = backbone_options(source, job.backbone_options)
    content = {
        'model': source.model,
        'weights': weights_sha256(source.weights) if source.weights else f'random, seed {job.seed}',
        'options': options,
        'learned_position': source.learned_position,
    }
    stage = store.stage('source', content)
    store.run(stage, lambda stage: _write(stage, job, options))
    return stage


def _write(stage: Stage, job: Job, options: dict[str, Any]) -> dict[str, Any]:
    source = job.source
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed if not source.weights else 0)
        vit = create_vit(source.model, learned_position=source.learned_position, **options)
        report = 'random weights'
        anew: tuple[str, ...] = ()
        if source.weights:
            loaded = load_weights(vit, source.weights, vit.patch_embed.fresh)
            report, anew = loaded.report, loaded.anew
    write_state(stage.folder / MODEL, vit.state_dict(), model_metadata(vit, source.model))
    parameters = vit.num_parameters
    fresh = [name for name in vit.patch_embed.fresh if any(k.startswith(f'{name}.') for k in anew)]
    return {'report': report, 'parameters': parameters, 'fresh': fresh}


def open_stage(stage: Stage, img_size: int | None) -> ViT:
    """The backbone that a source or adapted stage left."""
    vit = load_backbone(None, stage.folder / MODEL, img_size=img_size)
    return vit
