"""Hugging Face repositories: which files to take, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import cache
from .errors import FetchError

_LAYOUTS = (
    (
        "open_clip_config.json",
        (
            "open_clip_model.safetensors",
            "open_clip_pytorch_model.safetensors",
            "open_clip_pytorch_model.bin",
        ),
    ),
    ("config.json", ("model.safetensors", "pytorch_model.bin")),
)


def files(repository: str, download_root: Any = None) -> tuple[Path, Path]:
    """Paths of config and weights of `org/name` or `org/name@revision` in the hub's cache.

    HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, tokens and proxies are huggingface_hub's business and
    keep their meaning. Raises FetchError.
    """
    name, _, revision = repository.partition("@")
    for config, weights in _LAYOUTS:
        found = _file(name, config, revision, download_root)
        if found is None:
            continue
        for candidate in weights:
            file = _file(name, candidate, revision, download_root)
            if file is not None:
                return found, file
        raise FetchError(
            f"hf-hub:{repository} has {config} and none of {', '.join(weights)}"
            + (" in the local cache; unset HF_HUB_OFFLINE to download" if cache.offline() else "")
        )
    if cache.offline():
        raise FetchError(
            f"hf-hub:{repository} is not in the local cache and HF_HUB_OFFLINE forbids the network; unset it once, or "
            f"copy the repository's files to a folder and load 'local-dir:FOLDER'"
        )
    raise FetchError(
        f"hf-hub:{repository} has no open_clip_config.json and no config.json: open_clip's and transformers' "
        "layouts can be read"
    )


def _file(name: str, file: str, revision: str, download_root: Any) -> Path | None:
    """The local copy of a file, downloaded if need be; None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            hf_hub_download(name, file, revision=revision or None, cache_dir=download_root or None)
        )
    except LocalEntryNotFoundError as error:
        if cache.offline():
            return None
        raise FetchError(
            f"hf-hub:{name}: {file} is not in the cache and the hub did not answer ({error})"
        ) from error
    except GatedRepoError as error:
        raise FetchError(
            f"hf-hub:{name} is gated: accept its terms on its page and run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise FetchError(
            f"hf-hub:{name} does not exist, or is private; then run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise FetchError(f"hf-hub:{name} has no revision {revision!r}") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise FetchError(f"hf-hub:{name}: {file} could not be downloaded ({error})") from error
