"""The device a command runs on."""

from typing import Any


def pick_device(name: str) -> Any:
    """A torch device by name.

    Args:
        name: `auto` for the first GPU, else the CPU; or any name torch knows.

    Returns:
        The device.

    Raises:
        ValueError: If torch does not know the name, or there is no such device.
    """
    import torch

    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'no device {name!r} here: give cpu, cuda or auto') from error
    return device
