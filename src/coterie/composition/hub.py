"""Finds a checkpoint's folder: a path, or a Hugging Face id that is already in the local cache.

Knows nothing about networks: what is not on this machine is an error that says so.

Cache layout: <cache>/models--<owner>--<name>/snapshots/<commit>/, and refs/<branch or tag> whose text is the commit
(huggingface_hub, "Understand caching").
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from coterie.checkpoint.folder import ADAPTER_CONFIG, GGUF, brief, gguf_files, import_remedy
from coterie.core.errors import CompositionError
from coterie.core.paths import user_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


def hub_cache() -> Path:
    """The Hugging Face cache: $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub, the first that is set."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return user_path(cache, "HF_HUB_CACHE")
    home = os.environ.get("HF_HOME")
    return (user_path(home, "HF_HOME") if home else Path.home() / ".cache" / "huggingface") / "hub"


def find_checkpoint(ref: str, revision: str, root: Path, where: str) -> Path:
    """The folder of a checkpoint that is given as a path (relative to `root`) or as a Hugging Face id.

    Raises CompositionError when there is no such folder, or it has no config.json.
    """
    folder = root / user_path(ref, f"{where}.checkpoint")
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            fact, remedy = f"the folder {folder} has no config.json", "give a Hugging Face checkpoint folder"
            if files := gguf_files(folder):
                fact, remedy = f"{fact}, but {brief(files)}", import_remedy(files[0])
            if (folder / ADAPTER_CONFIG).is_file():
                fact, remedy = f"the folder {folder} has an adapter", "give its base, and the folder as adapter"
            raise CompositionError(f"{where}.checkpoint", f"checkpoint = {ref!r}: {fact}", remedy)
        return folder
    if folder.suffix == GGUF and folder.is_file():
        fact = f"checkpoint = {ref!r} is a GGUF file, which is imported first"
        raise CompositionError(f"{where}.checkpoint", fact, import_remedy(folder))
    if _HUB_ID.fullmatch(ref) is None:
        fact = f"checkpoint = {ref!r}: there is no folder {folder}"
        raise CompositionError(
            f"{where}.checkpoint", fact, "give a folder that exists; paths start from the file's own folder"
        )
    snapshot = _snapshot(ref, revision, where)
    if snapshot is None:
        fact = f"checkpoint = {ref!r}: no folder {folder}, and revision {revision!r} is not in the cache {hub_cache()}"
        raise CompositionError(f"{where}.checkpoint", fact, "give a folder that exists, or download that model first")
    return snapshot


def _snapshot(hub_id: str, revision: str, where: str) -> Path | None:
    if _REVISION.fullmatch(revision) is None or ".." in revision:
        raise CompositionError(
            f"{where}.revision", f"revision = {revision!r} cannot be a revision", "give a branch or a commit"
        )
    model = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    ref = model / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = model / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None
