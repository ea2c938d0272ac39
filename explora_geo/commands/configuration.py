"""YAML files of users, read with the file named in every message."""

from pathlib import Path
from typing import Any


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping.

    Args:
        file: The file.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML, or holds anything else.
    """
    import yaml

    if not file.is_file():
        raise FileNotFoundError(f'no configuration file {file}')
    try:
        content = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # or no text at all
        raise ValueError(f'{file} is not YAML ({error})') from error
    if not isinstance(content, dict):
        raise ValueError(f'{file} holds no keys and values, but {type(content).__name__}: give a YAML file')
    return content


def check_configs(args: list[str]) -> None:
    """Look at the files that `--config` names, whose own errors do not name them.

    Args:
        args: Arguments of LightningCLI.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If one is no YAML file of keys and values.
    """
    for name, following in zip(args, [*args[1:], ''], strict=True):
        option, _, value = name.partition('=')
        if option in ('--config', '-c'):
            read_yaml(Path(value or following))
