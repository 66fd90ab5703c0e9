"""Models of the Hugging Face hub: selects the files of a repository, downloads them, and finds them in the cache.

Everything goes through huggingface_hub and its cache, so `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and its
other environment variables have their usual meaning. First the list of a repository's files is read; then its
configuration, its tokenizer and one set of safetensors are downloaded. Code and pickles are never downloaded.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib.util
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import AdapterError

_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^\s@]+))?")
_TEXTS = (".json", ".jinja", ".txt", ".model", ".codes", ".spm")
"""Suffixes of configurations, tokenizers and chat templates; `.model` is a vocabulary of SentencePiece."""
_TRIES = 3
"""Number of attempts if a download is interrupted: before version 1.20, huggingface_hub resumes one only when called
again."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".gguf")


@dataclass(frozen=True)
class HubName:
    """The name of a model of the hub, as in `owner/name` or `owner/name@revision`.

    Attributes:
        name: Owner and name.
        revision: Branch, tag or commit; default: the branch `main`.
    """

    name: str
    revision: str | None = None

    @classmethod
    def read(cls, text: str, revision: str | None = None) -> HubName | None:
        """Parses a name; returns `None` if the text cannot be the name of a model on the hub.

        Args:
            text: The text.
            revision: The revision, if it is given separately.

        Raises:
            ValueError: If two different revisions are given.
        """
        found = _NAME.fullmatch(text)
        if found is None or text.startswith((".", "-")):
            return None
        if revision is not None and found[2] not in (None, revision):
            raise ValueError(f"two revisions are given: {text} and revision={revision!r}")
        return cls(found[1], found[2] if revision is None else revision)

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def is_offline() -> bool:
    """Returns whether `HF_HUB_OFFLINE` forbids contacting the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch(
    model: HubName, *, token: str | bool | None = None, local_files_only: bool = False, variant: str | None = None
) -> Path:
    """Returns the local folder of a model on the hub, after downloading what is missing.

    If the hub cannot be reached, a copy that was downloaded before is used, with a warning. A model that could not be
    loaded, because it has no safetensors for example, is not downloaded.

    Args:
        model: The model.
        token: Access token of the hub; default: `HF_TOKEN`, or that of `hf auth login`. `False` sends none.
        local_files_only: Use what was downloaded before, without contacting the hub; `HF_HUB_OFFLINE` has the same
            effect.
        variant: A variant of the weights, as in `model.VARIANT.safetensors`.

    Raises:
        AdapterError: If huggingface_hub is not installed, there is no such model or revision, the token gives no access
            to it, it has no safetensors, the disk is full, or the model was not downloaded before and the hub cannot be
            or must not be contacted.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise AdapterError(f"models of the hub, such as {model}, need huggingface_hub: pip install 'unmask[train]'")
    if not (local_files_only or is_offline()):
        try:
            return _download(model, token, variant)
        except _Unreachable as error:
            kept = cached(model)
            if kept is None or _lacking(kept, variant):
                raise
            warnings.warn(f"{error}; loading its revision {kept.name}, which was downloaded before", stacklevel=2)
            return kept
    kept = cached(model)
    if kept is None:
        raise AdapterError(
            f"there is no folder {str(model)!r}, and no such model was downloaded to {_cache()}; the hub is contacted"
            " only without local_files_only, --offline and HF_HUB_OFFLINE"
        )
    if lacking := _lacking(kept, variant):
        raise AdapterError(
            f"{model} was not downloaded completely, {lacking[0]} is missing: load it once without local_files_only,"
            " --offline and HF_HUB_OFFLINE"
        )
    return kept


def cached(model: HubName) -> Path | None:
    """Returns the folder to which a model was downloaded, possibly not completely; `None` if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            model.name, revision=model.revision, local_files_only=True, allow_patterns="config.json"
        )
    except (LocalEntryNotFoundError, ValueError):
        return None
    return Path(found)


def wanted(files: Iterable[str], variant: str | None = None) -> tuple[list[str], str | None]:
    """Returns which files of a repository to download.

    These are the configurations, vocabularies and chat templates in its top folder, and `model.safetensors`, or if
    there is none, the files that `model.safetensors.index.json` names. A dependence profile is included.

    Args:
        files: The names of all files of the repository.
        variant: A variant of the weights, as in `model.VARIANT.safetensors`.

    Returns:
        The names of the files, and the name of the index, which names further files, or `None` if it is not needed.

    Raises:
        AdapterError: If the repository holds no model that could be loaded. The message says what it has instead.
    """
    files = [file for file in files if "/" not in file]
    single, index = _weights(variant)
    if "config.json" not in files:
        raise AdapterError("it has no config.json")
    if "adapter_config.json" in files:
        raise AdapterError("it is an adapter (adapter_config.json); merge it into its model and save that")
    if single not in files and index not in files:
        others = [file for file in files if file.endswith((*_PICKLES, ".safetensors"))]
        why = "pickles can run code when they are read" if any(file.endswith(_PICKLES) for file in others) else ""
        has = f", only {', '.join(others[:3])}" if others else ""
        raise AdapterError(f"it has no {single}{has}{why and '; '}{why}")
    texts = [file for file in files if file.endswith(_TEXTS) and ".index." not in file and file != "trainer_state.json"]
    beside = ["profile.safetensors"] if {"profile.json", "profile.safetensors"} <= set(files) else []
    return ([*texts, *beside, single], None) if single in files else ([*texts, *beside, index], index)


def _weights(variant: str | None) -> tuple[str, str]:
    """Returns the name of a single file of weights, and that of the index of several files."""
    if variant is None:
        return "model.safetensors", "model.safetensors.index.json"
    return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"


def _download(model: HubName, token: str | bool | None, variant: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache

    with _asking(model):
        about = HfApi(token=token).model_info(model.name, revision=model.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in about.siblings or ()}
    try:
        files, index = wanted(sizes, variant)
    except AdapterError as error:
        raise AdapterError(f"nothing was downloaded of {model}: {error}") from None
    with _asking(model):
        if index is not None:
            path = hf_hub_download(model.name, index, revision=about.sha, token=token)
            files += _shards(Path(path), model, sizes)
        kept = cached(model)
        if kept is not None and kept.name == about.sha and all((kept / file).is_file() for file in files):
            return kept
        missing = [
            file for file in files if not isinstance(try_to_load_from_cache(model.name, file, revision=about.sha), str)
        ]
    _check_room(model, sum(sizes[file] for file in missing))
    patterns = [glob.escape(file) for file in files]
    tries = _TRIES
    while True:
        try:
            with _asking(model):
                return Path(
                    snapshot_download(model.name, revision=model.revision, token=token, allow_patterns=patterns)
                )
        except _Unreachable:
            tries -= 1
            if tries == 0:
                raise
        time.sleep(1.0)


def _shards(index: Path, model: HubName, files: Iterable[str]) -> list[str]:
    """Returns the files that an index names, and refuses any that are not safetensors of the same folder."""
    named = _named(index)
    for file in named:
        if "/" in file or not file.endswith(".safetensors") or file not in files:
            raise AdapterError(f"{index.name} of {model} names {file!r}, which is not a safetensors file beside it")
    return named


def _named(index: Path) -> list[str]:
    """Returns the files that an index names, unchecked."""
    try:
        return sorted({str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{index} does not say which file holds each tensor") from error


def _lacking(folder: Path, variant: str | None) -> list[str]:
    """Returns the files of weights that are missing in a folder of the cache."""
    single, index = _weights(variant)
    if (folder / single).is_file():
        return []
    named = _named(folder / index) if (folder / index).is_file() else [single]
    return [file for file in named if not (folder / file).is_file()]


def _check_room(model: HubName, size: int) -> None:
    """Refuses a download of `size` bytes for which the disk has not enough room."""
    place = _cache()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise AdapterError(
            f"{model} needs {_bytes(size)} more, but the disk of {_cache()} has {_bytes(free)} left; {_MORE_ROOM}"
        )


_MORE_ROOM = "make room, or set HF_HOME to a folder on a larger disk"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


class _Unreachable(AdapterError):
    """The hub cannot be reached."""


@contextlib.contextmanager
def _asking(model: HubName) -> Iterator[None]:
    """Turns exceptions of huggingface_hub into an `AdapterError` that says what to do."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:
        raise _explained(model, error) from error


def _explained(model: HubName, error: BaseException) -> AdapterError:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page, name = f"{constants.ENDPOINT}/{model.name}", model.name
    chain = list(_causes(error))
    if any(getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) for one in chain) or any(
        "no space left" in str(one).lower() for one in chain
    ):
        return AdapterError(f"the disk of {_cache()} is full, and {model} is not complete; {_MORE_ROOM}")
    if isinstance(error, HFValidationError):
        return AdapterError(f"{name!r} is not a name that a model of the hub can have: {_line(error)}")
    refused = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    if isinstance(refused, GatedRepoError):
        return AdapterError(
            f"{name} is only for users who accepted its terms: accept them at {page}, then give a token of that"
            " account, in HF_TOKEN or as token="
        )
    if isinstance(refused, RepositoryNotFoundError):
        return AdapterError(
            f"there is neither a folder {name!r} nor such a model at {constants.ENDPOINT}; check the name, or, if it is"
            " private, give a token, in HF_TOKEN or as token="
        )
    if isinstance(refused, RevisionNotFoundError):
        return AdapterError(
            f"{name} has no revision {model.revision or 'main'!r}; give a branch, tag or whole commit hash from"
            f" {page}/commits/main"
        )
    status = getattr(getattr(refused, "response", None), "status_code", None)
    if status == 401:
        return AdapterError(
            f"the hub does not accept the token that was sent for {name}; make another at"
            f" {constants.ENDPOINT}/settings/tokens and give it in HF_TOKEN or as token="
        )
    if status is not None and status < 500:
        return AdapterError(f"the hub refused {model} ({_line(chain[-1] if refused is None else refused)})")
    return _Unreachable(f"cannot download {model} from {constants.ENDPOINT} ({_line(chain[-1])}); try again")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        yield one
        seen.add(id(one))
        one = one.__cause__ or one.__context__


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
