"""Where a model runs, and in which precision."""

from collections.abc import Iterator

import pytest
import torch
from lightning.pytorch import Trainer

from explora_geo import devices
from explora_geo.devices import faster_precision, pick_device


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Forget the choice before and after."""
    faster_precision.cache_clear()
    yield
    faster_precision.cache_clear()


@pytest.mark.parametrize(('bf16', 'chosen'), [(0.5, 'bf16-mixed'), (0.9, '32-true'), (9.0, '32-true')])
def test_the_precision_is_the_one_that_is_clearly_faster(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch, bf16: float, chosen: str
) -> None:
    times = iter([[1.0, 1.2], [bf16, 2 * bf16]])  # float32 first
    monkeypatch.setattr(devices.timeit, 'repeat', lambda *args, **kwargs: next(times))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert faster_precision() == chosen == faster_precision()


def test_the_measured_precision_is_one_that_lightning_knows(unmeasured: None) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    trainer = Trainer(
        accelerator='cpu', precision=faster_precision(), logger=False, enable_checkpointing=False
    )
    assert trainer.precision == faster_precision() and torch.equal(torch.get_rng_state(), state)


def test_a_device_is_picked_by_name_or_refused() -> None:
    assert pick_device('cpu').type == 'cpu'
    assert pick_device().type == ('cuda' if torch.cuda.is_available() else 'cpu')
    for name in ('tpu-9', 'cuda:99'):
        with pytest.raises(ValueError, match=f"no device '{name}' here: give cpu, cuda or auto"):
            pick_device(name)
