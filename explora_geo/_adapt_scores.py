"""Images of an archive, and labeled tiles, on which `adapt` scores backbones, also while it trains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explora_geo._adapt_progress import ScoreSoFar
from explora_geo.datamodules.archive import Archive
from explora_geo.datamodules.labeled import LabeledTiles
from explora_geo.datamodules.windows import RandomWindows, whole_windows
from explora_geo.datasets import SceneDataset
from explora_geo.datasets.files import evenly_spaced
from explora_geo.evaluation.comparison import Comparison, PairProtocol, score_pair
from explora_geo.evaluation.features import mean_patches
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES, default_score
from explora_geo.models.vit import ViT
from explora_geo.trainers.guard import FeatureMonitor

#: Images of the archive that pictures and label-free scores are made of, at most and at least.
SAMPLE, LEAST = 300, 3
#: Labeled tiles that a run is scored on while it trains; half as many without labels.
ON_THE_WAY = 150
#: Names of the scores on the way in the log.
LABELED, LABEL_FREE = 'knn_so_far', 'label_free_so_far'


def check_sample(found: Archive) -> None:
    """Refuse an archive that is too small for a report.

    Raises:
        ValueError: If it is.
    """
    if found.kind != 'scenes' and found.images < LEAST:  # scenes are cut anew as often as it takes
        raise ValueError(
            f'{found.source} holds {found.images} image{"s"[: found.images != 1]}: give {LEAST} or more'
        )


def score_on_the_way(
    command: Any, found: Archive, labels: str | PathLike[str] | None, seconds: float
) -> ScoreSoFar:
    """What scores a run while it trains: k-NN on some labeled tiles, or without labels the label-free score.

    Args:
        command: Trainer, task and data module.
        found: The archive.
        labels: Folder of labeled tiles, or None.
        seconds: What a step takes.
    """
    datamodule, device = command.datamodule, 'cuda' if torch.cuda.is_available() else 'cpu'

    def with_labels() -> Callable[[ViT], float | None]:
        batches = list(LabeledTiles(labels or '', found, ON_THE_WAY).batches(datamodule))

        @torch.inference_mode()
        def score(vit: ViT) -> float | None:
            monitor = FeatureMonitor('knn')
            for batch in batches:
                monitor.add(mean_patches(vit, batch['image'].to(device)), batch)
            return monitor.score()

        return score

    def without() -> Callable[[ViT], float | None]:
        images, _ = sample(datamodule, device, ON_THE_WAY // 2)
        return lambda vit: default_score(vit, images)

    # A step sees each of its images three times at least: forward, and backward.
    image = seconds / datamodule.batch_size / 3
    planned = seconds * command.trainer.max_steps
    if labels is not None:
        return ScoreSoFar(LABELED, 'k-NN', with_labels, ON_THE_WAY * image, planned)
    title = SCORES[DEFAULT_SCORE].title.lower()
    return ScoreSoFar(LABEL_FREE, title, without, ON_THE_WAY * image, planned)  # two crops of each


def sample(datamodule: Any, device: str, most: int = SAMPLE) -> tuple[Tensor, list[str]]:
    """Evenly spaced images of the archive as they are scored, shape (N, C, H, W), and their names."""
    dataset = datamodule.train_dataset
    if isinstance(dataset, SceneDataset):
        windows = _windows(dataset, datamodule.patch_size, most)
        picked = dict(enumerate(dataset[window] for window in windows))
    else:
        picked = {i: dataset[i] for i in evenly_spaced(len(dataset), most)}
    used = [i for i, s in picked.items() if 'image' in s]
    usable = [picked[i] for i in used]
    if len(usable) < LEAST:
        raise ValueError(f'a report needs {LEAST} usable images, the archive gave {len(usable)}')
    batch = {'image': torch.stack([s['image'].float() for s in usable])}
    files = None if isinstance(dataset, SceneDataset) else getattr(dataset, 'files', None)
    names = [Path(str(files[i])).name for i in used] if files is not None else []
    return datamodule.aug(batch)['image'].to(device), names


def _windows(scenes: SceneDataset, size: int, most: int) -> list[Any]:
    """Windows at random places, always the same, about twice as many as fit side by side; a few at least."""
    beside = sum(whole_windows(scenes, i, size) for i in range(len(scenes)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(RandomWindows(scenes, size, min(most, max(12, 2 * beside))))


def score(
    before: ViT,
    after: Mapping[str, ViT],
    folder: str | PathLike[str],
    datamodule: Any,
    found: Archive,
    protocol: PairProtocol,
    strengths: Sequence[float] = (),
) -> Comparison:
    """Accuracies on labeled tiles, normalized as the archive was."""
    tiles, device = LabeledTiles(folder, found), before.cls_token.device

    def batches() -> Iterator[dict[str, Tensor]]:
        for batch in tiles.batches(datamodule):
            yield {**batch, 'image': batch['image'].to(device)}

    return score_pair(before, after, batches, strengths=strengths, protocol=protocol)
