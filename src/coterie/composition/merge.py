"""Merges the adapters and deltas of a composition into whole models, and writes a composition file for the result.

    office.toml   [[expert]] checkpoint = "base", adapter = "adapters/sql"    ->    out/sql/   out/composition.toml

Whole experts are not copied: the new file refers to them where they are.
Knows nothing about how an adapter or a delta is added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coterie.composition.composition import COMPOSITION_FILE, composition_of, read_file
from coterie.composition.toml import to_toml
from coterie.core.errors import CompositionError
from coterie.core.paths import user_path
from coterie.models.fine_tunes.merge import check_merge, merge_folder
from coterie.models.fine_tunes.merged import Merged
from coterie.models.new_folder import PARTIAL, free_path, new_folder

# By kind of router: the key that names a file, and the file's name if the key is left out.
_ROUTER_FILES: dict[str, tuple[str, str | None]] = {"lexical": ("weights", "router.npz"), "knn": ("examples", None)}


@dataclass(frozen=True, slots=True)
class MergedComposition:
    """The folder that was written, and the result of each merged expert, by name."""

    folder: Path
    experts: Mapping[str, Merged]


def merge_composition(ref: str | Path, target: str | Path) -> MergedComposition:
    """Merge each adapter and delta of a composition into a folder below `target`, next to a new composition.toml.

    Raises CompositionError for an invalid file or one without adapters and deltas, and what `merge_folder` raises. An
    adapter that does not fit its base is refused before anything is written; after a failure nothing is left behind.
    """
    out, path = free_path(target), user_path(ref, "composition")
    path = path / COMPOSITION_FILE if path.is_dir() else path
    values, root = read_file(path), path.resolve().parent
    experts = composition_of(values, path).experts
    mergeable = {e.name: (e.base, e.checkpoint) for e in experts if e.base is not None and e.checkpoint is not None}
    if not mergeable:
        raise CompositionError(str(path), "no expert of it is an adapter or a delta", "serve it as it is")
    _check_names(list(mergeable), path)
    for base, added in mergeable.values():
        check_merge(base, added)
    size_bytes = sum(file.stat().st_size for base, _ in mergeable.values() for file in base.glob("*.safetensors"))
    merged: dict[str, Merged] = {}
    with new_folder(out, "the merged experts", size_bytes) as staging:
        for name, (base, added) in mergeable.items():
            if (staging / name).exists():
                fact = f"{name!r} is a name that this disk does not tell from another expert's"
                raise CompositionError(str(path), fact, "names must differ in more than capitals; rename one expert")
            merged[name] = replace(merge_folder(base, added, staging / name), folder=out / name)
        (staging / COMPOSITION_FILE).write_text(to_toml(_moved(values, root, mergeable)), encoding="utf-8")
    return MergedComposition(out, merged)


def _check_names(names: Sequence[str], path: Path) -> None:
    """Refuse experts whose folder would collide with composition.toml or another's temporary `.partial` folder."""
    temporary = {name + PARTIAL: name for name in names}
    for name in names:
        if name == COMPOSITION_FILE or name in temporary:
            whose = (
                f"under which {temporary[name]!r} is written" if name in temporary else "of the file beside the folders"
            )
            raise CompositionError(str(path), f"the expert {name!r} has the name {whose}", "rename the expert")


def _moved(values: Mapping[str, Any], root: Path, merged: Collection[str]) -> dict[str, Any]:
    """The tables for the new file: merged experts relative to it, all other paths absolute."""
    moved = dict(values) | {"expert": [_moved_expert(table, root, merged) for table in values["expert"]]}
    if "router" in values:
        router = _moved_expert(values["router"], root, ())  # a router's own model has the same keys as an expert
        key, left_out = _ROUTER_FILES.get(router["kind"], ("", None))
        name = router.get(key, left_out)
        moved["router"] = router | ({key: str(root / user_path(name))} if name else {})
    return moved


def _moved_expert(table: Mapping[str, Any], root: Path, merged: Collection[str]) -> dict[str, Any]:
    if table.get("name") in merged:
        kept = {key: value for key, value in table.items() if key not in ("adapter", "base", "revision")}
        return kept | {"checkpoint": table["name"]}
    config, moved = table.get("config", ""), dict(table)
    for key in ("checkpoint", "base", "adapter"):
        if key in table and (root / user_path(table[key])).is_dir():  # else a Hugging Face id
            moved[key] = str(root / user_path(table[key]))
    if "/" in config or config.endswith(".json"):  # else a shape by name
        moved["config"] = str(root / user_path(config))
    return moved
