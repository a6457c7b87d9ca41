"""Finds the experts of a folder: each subfolder that is a checkpoint, an adapter or a delta is an expert.

    models/sql/config.json                                          -> sql
    models/team/sql/config.json                                     -> sql, or team--sql where two have that name
    hub/models--team--name/snapshots/COMMIT/config.json             -> name, or team--name where two have that name
    (refs/main has the commit)
    models/My Model (1)/config.json                                 -> My-Model-1, if that name is free

A subfolder that cannot be served is left out, with the reason, so that the others can be.
Knows nothing about what a checkpoint holds, beyond that its folder has a config.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from coterie.checkpoint.folder import CONFIG, brief, fine_tune_kind, gguf_files, import_remedy
from coterie.composition.expert import NAME_RULE, Expert, expert_name, is_expert_name
from coterie.composition.gguf_folder import ollamas_store
from coterie.composition.hub import SNAPSHOTS, find_base, main_snapshot, named_in_cache
from coterie.core.errors import CompositionError, CoterieError, UsageError
from coterie.core.text import safe_name


@dataclass(frozen=True, slots=True)
class FolderExperts:
    """The experts of a folder, and what was left out, name -> reason. `name`: a name for the composition.

    `is_single`: the folder itself is the expert.
    """

    name: str
    experts: tuple[Expert, ...]
    left_out: Mapping[str, UsageError]
    is_single: bool = False


def experts_of(folder: Path) -> FolderExperts:
    """The experts of a folder. Raises CompositionError if there are none; for a sole candidate, why it was refused."""
    root = folder.resolve()
    itself = main_snapshot(root) or root
    if is_checkpoint(itself):
        expert = _expert(_name_alone(itself), itself, root)
        return FolderExperts(expert.name, (expert,), {}, is_single=True)
    named, left_out = _named(root)
    experts = []
    for name, path in named.items():
        try:
            experts.append(_expert(name, path, root))
        except UsageError as error:
            left_out[name] = error
    if not experts:
        raise none_left(folder, left_out)
    names = [expert.name for expert in experts]
    # The composition is named after the folder. The name must be valid, and must differ from every expert's: a request
    # names either in the same field.
    label = safe_name(root.name) or "folder"
    while label in names:
        label += "-experts"
    return FolderExperts(label, tuple(experts), left_out)


def none_left(folder: Path, left_out: Mapping[str, CoterieError]) -> CoterieError:
    """The error for a folder without experts, given what was left out of it."""
    if len(left_out) == 1:
        return next(iter(left_out.values()))
    if left_out:
        name, first = next(iter(left_out.items()))
        fact = f"nothing of {len(left_out)} in it can be served; {name}: [{first.where}] {first.fact}"
        return CompositionError(str(folder), fact, first.remedy)
    fact = "no expert: neither this folder nor a folder in it has a config.json"
    return CompositionError(str(folder), fact, "give a folder of checkpoints, or one with composition.toml")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint, an adapter or a delta, perhaps incomplete: opening it says what is wrong."""
    config = folder / CONFIG
    return config.exists() or config.is_symlink() or bool(fine_tune_kind(folder))


def _named(root: Path) -> tuple[dict[str, Path], dict[str, UsageError]]:
    """The folders that may be experts, by name, and the reasons for those that cannot."""
    left_out: dict[str, UsageError] = {}
    within = _within(root, left_out)
    snapshots: dict[Path, Path | None] = {}
    for path in within:
        try:
            snapshots[path] = main_snapshot(path)
        except UsageError as error:
            left_out[path.name] = error
    places = {path: snapshot or path for path, snapshot in snapshots.items()}
    found = {path: place for path, place in places.items() if is_checkpoint(place)}
    in_places = {path: gguf_files(place) for path, place in places.items() if path not in found}
    files = [*gguf_files(root), *(file for some in in_places.values() for file in some)]
    if (files or ollamas_store(root)) and not found:
        which = f"GGUF files ({brief(files)})" if files else "the GGUF files of Ollama's models"
        fact = f"no expert, but {which}, each of which is imported first"
        raise CompositionError(
            str(root), fact, f"write an expert folder from each: coterie import {quote(str(root))} OUT"
        )
    short = Counter(_team_and_name(path, root)[1] for path in found)
    named: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: not is_expert_name(path.name)):  # unchanged names take precedence
        place = found[path]
        team, name = _team_and_name(path, root)
        name = f"{team}--{name}" if team and short[name] > 1 else name
        if name in named:
            left_out[path.name] = CompositionError(str(root), f"{name!r} names two folders", "rename one of them")
        elif is_expert_name(name):
            named[name] = place
        else:
            left_out[path.name] = CompositionError(
                str(root), f"folder name {path.name!r} cannot be a name", f"rename it: {NAME_RULE}"
            )
    for path, some in in_places.items():
        if not some and (snapshots[path] is not None or any(path.glob("*.safetensors"))):
            fact = f"has no {CONFIG}"
            left_out[path.name] = CompositionError(str(places[path]), fact, "download the whole model")
    for file in files:
        left_out[file.name] = CompositionError(
            str(file), "is a GGUF file, which is imported first", import_remedy(file)
        )
    return named, left_out


def _within(root: Path, left_out: dict[str, UsageError]) -> list[Path]:
    """The subfolders of a folder; one that contains models (a team's) is replaced by those. Unreadable: left out."""
    found: list[Path] = []
    inside = sorted(root.iterdir())
    for path in inside:
        if path.is_symlink() and not path.exists() and not path.name.startswith("."):
            fact = f"points to {path.readlink()}, which does not exist"
            left_out[path.name] = CompositionError(str(path), fact, "mend the link, or take it out of the folder")
    around = {root, *root.parents}  # a symlink to one of these would loop

    def looked_into(path: Path) -> bool:
        return path.is_dir() and not path.name.startswith(".") and path.resolve() not in around

    for path in filter(looked_into, inside):
        try:
            inner = sorted(filter(looked_into, path.iterdir()))
            is_one = is_checkpoint(path) or path / SNAPSHOTS in inner
            found += [path] if is_one else ([one for one in inner if is_checkpoint(one) or gguf_files(one)] or [path])
        except OSError as error:
            fact = f"cannot be read: {error.strerror}"
            left_out[path.name] = CompositionError(str(path), fact, "let it be read, or take it out of the folder")
    return found


def _team_and_name(path: Path, root: Path) -> tuple[str, str]:
    """The team and the name of a model, from its Hugging Face cache folder or its parent folder.

    The team is empty for a plain folder directly below `root`.
    """
    team, name = named_in_cache(path.name) if path.parent == root else (path.parent.name, path.name)
    return expert_name(team), expert_name(name)


def _expert(name: str, path: Path, root: Path) -> Expert:
    return Expert(name, path, base=find_base(path, root, str(root)) if fine_tune_kind(path) else None)


def _name_alone(path: Path) -> str:
    """The expert's name for a single checkpoint. A cached snapshot's folder is named by a commit: the model's name."""
    in_cache = path.parent.name == "snapshots" and named_in_cache(path.parent.parent.name)
    return expert_name(in_cache[1] if in_cache and in_cache[0] else path.name) or "model"
