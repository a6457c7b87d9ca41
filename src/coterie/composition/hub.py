"""Finds the folders of checkpoints and of adapters' bases, from a path or a Hugging Face id in the local cache.

Knows nothing about networks: what is not on this machine is an error that says so.

Cache layout: <cache>/models--<owner>--<name>/snapshots/<commit>/, and refs/<branch or tag>, which contains the commit
(huggingface_hub, "Understand caching").
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import read_object, read_text
from coterie.checkpoint.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    DELTA_CONFIG,
    GGUF,
    brief,
    fine_tune_kind,
    gguf_files,
    import_remedy,
    is_delta,
)
from coterie.core.errors import CheckpointError, CompositionError, shown
from coterie.core.paths import user_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[A-Za-z0-9][\w.-]*")
SNAPSHOTS = "snapshots"  # the folder of a model's revisions in the cache
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


def hub_cache() -> Path:
    """The Hugging Face cache: $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub, the first that is set.

    Raises CompositionError if neither variable is set and the user has no home directory.
    """
    if cache := os.environ.get("HF_HUB_CACHE"):
        return user_path(cache, "HF_HUB_CACHE")
    if home := os.environ.get("HF_HOME"):
        return user_path(home, "HF_HOME") / "hub"
    try:
        return Path.home() / ".cache" / "huggingface" / "hub"
    except RuntimeError:  # raised by pathlib, for example for a user id without an account in a container
        fact = "this user has no home folder, and so no cache of models by id"
        raise CompositionError("HF_HOME", fact, "set HF_HOME, HF_HUB_CACHE or HOME, or give a folder") from None


def find_checkpoint(
    ref: str, revision: str, root: Path, where: str, key: str = "checkpoint", adapters: bool = False
) -> Path:
    """The folder of a checkpoint, given as a path (relative to `root`) or as a Hugging Face id under the key `key`.

    `adapters`: an adapter's or delta's folder is accepted too. Raises CompositionError if there is no such folder, or
    if it has no config.json.
    """
    place = f"{where}.{key}"
    folder = root / user_path(ref, place)
    if folder.is_dir():
        part = fine_tune_kind(folder)
        if adapters and part:
            return folder
        if part or not (folder / CONFIG).is_file():
            fact, remedy = f"the folder {folder} has no config.json", "give a Hugging Face checkpoint folder"
            if files := gguf_files(folder):
                fact, remedy = f"{fact}, but {brief(files)}", import_remedy(files[0])
            if part:
                fact = f"the folder {folder} has {part}, where a whole model is expected"
                remedy = f"give one, as coterie merge BASE {folder} OUT writes it"
            raise CompositionError(place, f"{key} = {ref!r}: {fact}", remedy)
        return folder
    if folder.suffix == GGUF and folder.is_file():
        raise CompositionError(place, f"{key} = {ref!r} is a GGUF file, which is imported first", import_remedy(folder))
    if not is_hub_id(ref):
        fact = f"{key} = {ref!r}: there is no folder {folder}"
        raise CompositionError(place, fact, "give a folder that exists; paths start from the file's own folder")
    snapshot = _snapshot(ref, revision, where)
    if snapshot is None:
        fact = f"{key} = {ref!r}: no folder {folder}, and revision {revision!r} is not in the cache {hub_cache()}"
        raise CompositionError(place, fact, "give a folder that exists, or download that model first")
    return snapshot


def find_base(adapter: Path, root: Path, where: str) -> Path:
    """The base of an adapter or delta, as its own config names it, for compositions that do not.

    It is the path or id in the config, or a folder of that name next to the adapter. Raises CompositionError if there
    is none, CheckpointError for a damaged config.
    """
    part, config = ("delta", DELTA_CONFIG) if is_delta(adapter) else ("adapter", ADAPTER_CONFIG)
    fields = read_object(adapter / config)
    named = fields.get("base_model_name_or_path")
    remedy = f'put it beside the {part}, or name it in a composition file: base = "its folder"'
    if not isinstance(named, str) or not named.strip():
        raise CompositionError(where, f"the {part} {adapter} does not say what its base is", remedy)
    # A relative path was relative to the working directory of the training run, which is not recorded.
    folders = list(dict.fromkeys([root / user_path(named, where), adapter.resolve().parent / Path(named).name]))
    for folder in folders:
        if (folder / CONFIG).is_file() and not fine_tune_kind(folder):
            return folder
    revision = str(fields.get("revision") or "main")
    if is_hub_id(named) and (found := _snapshot(named, revision, where)):
        return found
    fact = f"the base of the {part} {adapter} is {named!r}"
    if found := next((folder for folder in folders if fine_tune_kind(folder)), None):
        fact += f", but {found} is {fine_tune_kind(found)} too, and one is served beside a whole model alone"
        raise CompositionError(where, fact, f"merge that into its base first: coterie merge BASE {found} OUT")
    none = "is no checkpoint" if len(folders) == 1 else f"and {folders[1]} are no checkpoints"
    raise CompositionError(where, f"{fact}, but {folders[0]} {none}", remedy)


def find_folders(table: Mapping[str, Any], root: Path, where: str, whole: bool) -> tuple[Path, Path | None]:
    """(checkpoint, None) of a whole model, or (adapter or delta, base) of an expert on a base.

    The file may write that as `checkpoint` and `adapter` (base first), as `checkpoint` and `base` (adapter first), or
    as `checkpoint` alone: then the adapter's own config names its base. `whole`: an adapter is not accepted. Raises
    CompositionError, and CheckpointError for a damaged adapter_config.json.
    """
    alone = not whole and "adapter" not in table
    found = find_checkpoint(table["checkpoint"], table.get("revision", "main"), root, where, adapters=alone)
    if "adapter" in table and "base" in table:
        fact = (
            f"base = {table['base']!r} and checkpoint = {table['checkpoint']!r} beside adapter name a base by two keys"
        )
        raise CompositionError(f"{where}.base", fact, "leave one out: an adapter's folder is checkpoint or adapter")
    if "adapter" in table:
        folder = root / user_path(table["adapter"], f"{where}.adapter")
        if not fine_tune_kind(folder):
            fact = f"adapter = {table['adapter']!r}: there is no adapter in {folder}"
            raise CompositionError(f"{where}.adapter", fact, "give a folder that PEFT saved, with adapter_config.json")
        return folder, found
    if not fine_tune_kind(found):
        if "base" in table:
            fact = f"base = {table['base']!r}, but checkpoint = {table['checkpoint']!r} is a whole model"
            raise CompositionError(f"{where}.base", fact, "leave it out, or give an adapter's folder as checkpoint")
        return found, None
    if "base" in table:
        return found, find_checkpoint(table["base"], "main", root, where, "base")
    return found, find_base(found, root, where)


def is_hub_id(ref: str) -> bool:
    """Whether this has the form of a Hugging Face model id, TEAM/NAME."""
    return _HUB_ID.fullmatch(ref) is not None


def cached_model(hub_id: str) -> Path | None:
    """The main revision of a model in the local cache; None if it is not there or this is not an id."""
    return _snapshot(hub_id, "main", hub_id) if is_hub_id(hub_id) else None


def named_in_cache(folder: str) -> tuple[str, str]:
    """The team and the name in a cache folder's name, models--TEAM--NAME; an empty team for any other folder."""
    kind, *rest = folder.split("--", 2)
    return (rest[0], rest[1]) if kind == "models" and len(rest) == 2 else ("", folder)


def main_snapshot(model: Path) -> Path | None:
    """The main revision in a model's cache folder, or its only one; None for any other folder."""
    snapshots = model / SNAPSHOTS
    if not snapshots.is_dir() or not named_in_cache(model.name)[0]:
        return None
    ref = model / "refs" / "main"
    if ref.is_file():
        return snapshots / _commit(ref)
    found = list(snapshots.iterdir())
    return found[0] if len(found) == 1 else snapshots / "main"


def _commit(ref: Path) -> str:
    """The commit in a `refs` file of the cache: the name of its snapshot's folder. Raises CheckpointError."""
    commit = read_text(ref).strip()
    if _COMMIT.fullmatch(commit) is None:
        raise CheckpointError(str(ref), f"holds {shown(commit)}, which is no commit", "download the model again")
    return commit


def _snapshot(hub_id: str, revision: str, where: str) -> Path | None:
    if _REVISION.fullmatch(revision) is None or ".." in revision:
        raise CompositionError(
            f"{where}.revision", f"revision = {revision!r} cannot be a revision", "give a branch or a commit"
        )
    model = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    ref = model / "refs" / revision
    commit = _commit(ref) if ref.is_file() else revision
    snapshot = model / SNAPSHOTS / commit
    is_there = (snapshot / CONFIG).is_file() or fine_tune_kind(snapshot) or gguf_files(snapshot)
    return snapshot if is_there else None
