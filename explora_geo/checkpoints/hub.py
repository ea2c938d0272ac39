"""Files of the Hugging Face hub by name."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

#: What names of files on the hub start with.
HUB = 'hf:'
ADAPTER, MODEL, CARD = 'adapter.safetensors', 'model.safetensors', 'README.md'
_NAME = re.compile(r'(?:hf:)?(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>\S+))?')


class HubFile(NamedTuple):
    """A file of a repository, in the hub's cache on this machine.

    Attributes:
        path: Where it is.
        name: Its name with the commit, `hf:owner/name@commit/file`, which always means this file.
        commit: The commit that it is of.
        licence: Licence by the repository's card; empty if it states none.
        card: The card, if there is one.
    """

    path: Path
    name: str
    commit: str
    licence: str
    card: Path | None


def fetch_file(name: str, wanted: Sequence[str] = (MODEL, 'pytorch_model.bin')) -> HubFile:
    """Get a file of the hub, from its cache if it is there; a connection that breaks is resumed.

    `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` count as for every client of the hub.

    Args:
        name: `hf:owner/name[@revision][/file]`, where the revision is a branch, a tag or a commit.
        wanted: Names to look for, in this order, where `name` has no file.

    Raises:
        ValueError: If it cannot be had; the message says why and what to do.
    """
    from huggingface_hub import hf_hub_download, metadata_load
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f'{name} names nothing on the hub: write hf:owner/name@revision/file')
    repo, revision = match['repo'], match['revision']
    wanted = [match['file']] if match['file'] else wanted
    with hub_errors(repo, revision):
        for file in wanted:
            try:
                path = Path(hf_hub_download(repo, file, revision=revision))
                break
            except LocalEntryNotFoundError as error:
                unreached: Exception | None = error
            except EntryNotFoundError:
                unreached = None
        else:
            if unreached is not None:
                raise unreached
            raise ValueError(f'{repo} has no {" or ".join(wanted)}{_others(repo, revision)}')
        commit = path.parents[file.count('/')].name
        try:
            card = Path(hf_hub_download(repo, CARD, revision=commit))
        except EntryNotFoundError:
            card = None
    facts = (metadata_load(card) if card else None) or {}
    licence = str(facts.get('license_name') or facts.get('license') or '')
    return HubFile(path, f'{HUB}{repo}@{commit}/{file}', commit, licence, card)


def cached_file(name: str) -> Path:
    """Where a file of the hub lies in its cache, `hf:owner/name/file`; a path of no file if it does not."""
    from huggingface_hub import try_to_load_from_cache

    match = _NAME.fullmatch(name)
    assert match is not None
    found = try_to_load_from_cache(match['repo'], match['file'], revision=match['revision'])
    return Path(found if isinstance(found, str) else name)


def _others(repo: str, revision: str | None) -> str:
    """The weights files that a repository has, for a message."""
    from huggingface_hub import HfApi

    files = [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or ()]
    names = [name for name in files if name.endswith(('.safetensors', '.bin', '.pth'))]
    return f': give one of its files, such as hf:{repo}/{names[0]}' if names else ', nor other weights'


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Say in one sentence what the hub's client raises about a repository, and what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        terms = f'{constants.ENDPOINT}/{repo}'
        raise ValueError(
            f'{repo} is gated: accept its terms at {terms}, and set HF_TOKEN to your token'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f'the hub shows no repository {repo}: check the name; a private one needs a token in HF_TOKEN'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f'{repo} has no revision {revision}') from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            what = f'does not let you into {repo}: set HF_TOKEN to a token that may read or write it'
        else:
            what = f'refuses {repo} ({_first(error)}): try again later'
        raise ValueError(f'the hub {what}') from error
    except ValueError:
        raise
    except Exception as error:  # of the network there are many kinds, of several packages
        why = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else _first(error.__cause__ or error)
        raise ValueError(
            f'{repo} is not in the cache, and the hub cannot be reached ({why}): check the network, or give '
            'the path of a file'
        ) from error


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split('\n')[0]
