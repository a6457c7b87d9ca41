"""Composition: a router and its experts, read from a TOML file, a folder of checkpoints or a preset of the package.

Knows nothing about what a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coterie.checkpoint.files import MAX_BYTES, open_file
from coterie.checkpoint.folder import GGUF, import_remedy
from coterie.composition.examples import read_examples
from coterie.composition.expert import NAME_RULE, Expert, is_expert_name, owners_of
from coterie.composition.folder import experts_of
from coterie.composition.hub import cached_model, find_folders, hub_cache, is_hub_id
from coterie.composition.routers import llm
from coterie.composition.routers.knn import NUM_NEIGHBOURS, SIMILARITY, Example
from coterie.composition.routers.rules import Match, Rule, rule_of
from coterie.composition.schema import COMPOSITION
from coterie.composition.validate import name_hint, validate
from coterie.core.errors import (
    CheckpointError,
    CompositionError,
    CoterieError,
    NotFoundError,
    RequestError,
    UsageError,
    shown,
)
from coterie.core.parsed import parse_toml
from coterie.core.paths import user_path
from coterie.core.sampling import PartialSampling

PRESETS = Path(__file__).parent / "presets"
COMPOSITION_FILE = "composition.toml"
DEFAULT_MARGIN = 0.5


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """The router's settings, as in the file. `threshold` None means the default of that kind of router.

    `margin`: the lead in confidence that another expert needs before a conversation moves to it. `prefer_resident`:
    an expert in memory is preferred to one that is not and leads by at most this; 0: residency does not matter.
    By kind: "rules" uses `rules` and `match`; "lexical" uses `weights`, a file that exists; "knn" uses `examples`,
    `num_neighbours` (how many of them vote), `similarity` and, to compare embeddings, `model`; "llm" uses `model`,
    `question` and `max_tokens`.
    """

    kind: str
    fallback: str
    threshold: float | None = None
    margin: float = DEFAULT_MARGIN
    prefer_resident: float = 0.0
    match: Match = "first"
    rules: tuple[Rule, ...] = ()
    weights: Path | None = None
    examples: tuple[Example, ...] = ()
    num_neighbours: int = NUM_NEIGHBOURS
    similarity: float = SIMILARITY
    model: Expert | None = None
    question: str = llm.QUESTION
    max_tokens: int = llm.MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Composition:
    """A router and its experts. `root` is the folder that relative paths start from.

    `is_folder`: the experts were found in a folder, not declared in a file. `skips_unservable`: an expert that cannot
    be served is not an error but is skipped and recorded in `left_out`, name -> reason. `source`: the file or folder
    that was read, if any. `owners`: alias -> expert, including the aliases of experts that were left out.
    """

    name: str
    experts: tuple[Expert, ...]
    router: RouterSpec | None
    root: Path
    description: str = ""
    is_folder: bool = False
    left_out: Mapping[str, CoterieError] = field(default_factory=lambda: MappingProxyType({}))
    source: Path | None = None
    skips_unservable: bool = False
    owners: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names, in the order of the file."""
        return tuple(expert.name for expert in self.experts)

    @property
    def aliases(self) -> tuple[str, ...]:
        """All experts' aliases, in the order of the file."""
        return tuple(alias for expert in self.experts for alias in expert.aliases)

    def named(self, name: str) -> Expert | None:
        """The expert with this name or alias, if there is one. A name takes precedence over an alias."""
        own = (expert for expert in self.experts if expert.name == name)
        return next(own, None) or next((expert for expert in self.experts if name in expert.aliases), None)

    def expert(self, name: str) -> Expert:
        """The expert with this name or alias. Raises NotFoundError, which suggests the nearest names."""
        if found := self.named(name):
            return found
        if missing := self.missing(name):
            raise missing
        fact = f"there is no expert {shown(name)} among {len(self.experts)}"
        raise NotFoundError(self.name, fact, name_hint(name, self.names, self.aliases))

    def missing(self, name: str) -> NotFoundError | None:
        """Why the expert with this name or alias is not served, if it was left out."""
        own = self.owners.get(name, name)
        if (why := self.left_out.get(own)) is None:
            return None
        who = f"the expert {own}" if own == name else f"{name} is the expert {own}, which"
        return NotFoundError(self.name, f"{who} is left out: [{why.where}] {why.fact}", why.remedy)


def load_composition(ref: str | Path, leave_out: bool = False) -> Composition:
    """Read a composition: the name of a preset ("demo"), a .toml file, a folder, or a Hugging Face id in the cache.

    A folder that contains composition.toml stands for that file. A folder that is itself a checkpoint or an adapter is
    a composition of one expert. In any other folder, each subfolder that is a checkpoint or an adapter becomes an
    expert, and there is no router (folder.py). A preset's name takes precedence over a folder of the same name (write
    ./demo for the folder); a Path never names a preset. `leave_out`: experts of a file that cannot be found are left
    out, as in a folder, instead of raising an error.

    Raises NotFoundError (nothing there), CompositionError (file, key, value, what to change).
    """
    ref = ref if isinstance(ref, str) else str(user_path(ref, "composition").absolute())
    try:
        return _load(ref, leave_out)
    except (OSError, RuntimeError) as error:
        # For example a prompt given instead of a composition, a symlink loop, or a file without read permission.
        raise NotFoundError(ref[:60], f"it cannot be opened: {error}", "give a .toml file, a folder or demo") from error


def _load(ref: str, leave_out: bool) -> Composition:
    path = PRESETS / ref / COMPOSITION_FILE
    if not (is_expert_name(ref) and path.is_file()):
        path = user_path(ref, "composition")
    if path.is_dir():
        if not (path / COMPOSITION_FILE).is_file():
            return _from_folder(path)
        path = path / COMPOSITION_FILE
    if not path.exists() and (snapshot := cached_model(ref)):
        return _from_folder(snapshot)
    if not path.exists():
        presets = sorted(found.parent.name for found in PRESETS.glob(f"*/{COMPOSITION_FILE}"))
        fact, remedy = "there is no such file or folder", f"give a .toml file, a folder or {' or '.join(presets)}"
        if is_hub_id(ref):
            fact, remedy = f"{fact}, and no such model in the cache {hub_cache()}", f"{remedy}, or download it first"
        raise NotFoundError(ref, fact, remedy)
    if path.suffix == GGUF:
        raise CompositionError(str(path), "is a GGUF file, which is imported first", import_remedy(path))
    return composition_of(read_file(path), path, leave_out)


def _from_folder(folder: Path) -> Composition:
    found = experts_of(folder)
    is_folder, root = not found.is_single, folder.resolve()
    own = Composition(found.name, found.experts, None, root, left_out=found.left_out, source=root)
    return replace(own, is_folder=is_folder, skips_unservable=is_folder)


def read_file(path: Path) -> dict[str, Any]:
    """The tables of a composition file, checked against the schema. Raises CompositionError and UnsupportedError."""
    file = str(path)
    try:
        with open_file(path, MAX_BYTES) as opened:
            text = opened.read().decode("utf-8-sig")  # some editors on Windows write a byte order mark
    except CheckpointError as error:
        raise CompositionError(file, error.fact, error.remedy) from None
    except UnicodeDecodeError as error:
        raise CompositionError(file, f"byte {error.start} is not UTF-8", "save the file as UTF-8 text") from error
    except OSError as error:
        fact = f"it cannot be read: {error.strerror}"
        raise CompositionError(file, fact, "check the path and its permissions") from error
    values = parse_toml(text, file, CompositionError)
    validate(values, COMPOSITION, file)
    return values


def composition_of(values: Mapping[str, Any], path: Path, leave_out: bool = False) -> Composition:
    """The composition described by a file's tables; `leave_out` as in load_composition. Raises CompositionError."""
    file, root = str(path), path.resolve().parent
    left_out: dict[str, CoterieError] | None = {} if leave_out else None
    declared = _experts(values["expert"], root, file, left_out)
    names = [expert.name for expert in declared]
    if values["name"] in names:
        fact = f"name = {values['name']!r} is also an expert's, and clients ask for both by the same field"
        raise CompositionError(f"{file}: name", fact, "give the composition or the expert another name")
    owners = owners_of(declared, values["name"], file)
    experts = tuple([expert for expert in declared if expert.name not in (left_out or ())])
    router = _router(values["router"], names, root, file) if "router" in values else None
    router = _with_examples(router, values, names, root, file)
    about, source = values.get("description", ""), path.absolute()
    own = Composition(
        values["name"], experts, router, root, about, source=source, skips_unservable=leave_out, owners=owners
    )
    return replace(own, left_out=left_out or own.left_out)


def _experts(
    tables: Sequence[Mapping[str, Any]], root: Path, file: str, left_out: dict[str, CoterieError] | None
) -> list[Expert]:
    """All experts of a file. Of those added to `left_out`, only the name and the aliases are kept."""
    experts: dict[str, Expert] = {}
    for number, table in enumerate(tables, start=1):
        where = f"{file}: expert[{number}] {table['name']!r}"
        try:
            found = _counted(table, _one_expert(table, root, where), where)
        except UsageError as error:
            if left_out is None:
                raise
            left_out[table["name"]] = error
            found = [Expert(table["name"], aliases=tuple(table.get("aliases", ())))]
        for expert in found:
            if expert.name in experts:
                fact = f"the name {expert.name!r} is already taken by an expert above"
                raise CompositionError(where, fact, "give each expert a name of its own")
            experts[expert.name] = expert
    for expert in experts.values():
        where = f"{file}: expert {expert.name!r}.draft"
        if expert.draft:
            _expect_expert(expert.draft, list(experts), where, "draft")
        if expert.draft == expert.name:
            raise CompositionError(where, "an expert cannot be its own draft", "name a smaller one, or leave it out")
    return list(experts.values())


def _one_expert(table: Mapping[str, Any], root: Path, where: str) -> Expert:
    said = {"description": table.get("description", ""), "sampling": _sampling(table, where)}
    said |= {"draft": table.get("draft", ""), "aliases": tuple(table.get("aliases", ()))}
    name = table["name"]
    if "checkpoint" in table:
        checkpoint, base = find_folders(table, root, where, whole=name == llm.ROUTER)
        return Expert(name, checkpoint=checkpoint, base=base, **said)
    config = table["config"]
    if "/" in config or config.endswith(".json"):
        path = root / user_path(config, f"{where}.config")
        if not path.is_file():
            fact = f"config = {config!r}: no file {path}"
            raise CompositionError(f"{where}.config", fact, "give a config.json that exists")
        config = str(path)
    kind = {key: table[key] for key in ("packed", "rank", "delta") if key in table}
    if "rank" in kind and "delta" in kind:
        fact = f"rank = {kind['rank']} and delta = {kind['delta']!r}: an expert is an adapter or a delta"
        raise CompositionError(where, fact, "leave one of them out")
    return Expert(name, config=config, **said, **kind)


def _sampling(table: Mapping[str, Any], where: str) -> PartialSampling:
    try:
        return PartialSampling(**table.get("sampling", {}))
    except RequestError as error:  # a value that the schema accepts, such as top_p = 0
        raise CompositionError(f"{where}.sampling.{error.where}", error.fact, error.remedy) from error


def _counted(table: Mapping[str, Any], expert: Expert, where: str) -> list[Expert]:
    marked = "{i}" in expert.name
    if marked and "count" not in table:
        fact = "{i} in a name has no meaning without count"
        raise CompositionError(f"{where}.name", fact, "give count or take {i} out")
    if not marked and table.get("count", 1) > 1:
        fact = f"count = {table['count']} would make experts of one and the same name"
        raise CompositionError(f"{where}.count", fact, f'write name = "{expert.name}-{{i}}"')
    names = [expert.name.replace("{i}", str(i)) for i in range(table["count"])] if marked else [expert.name]
    for name in names:
        if not is_expert_name(name):
            raise CompositionError(f"{where}.name", f"{name!r} cannot be a name", NAME_RULE)
    return [replace(expert, name=name) for name in names]


def _router(table: Mapping[str, Any], names: Sequence[str], root: Path, file: str) -> RouterSpec:
    _expect_expert(table["fallback"], names, f"{file}: router.fallback", "fallback")
    rules: list[Rule] = []
    for number, rule in enumerate(table.get("rule", ()), start=1):
        where = f"{file}: router.rule[{number}]"
        _expect_expert(rule["expert"], names, f"{where}.expert", "expert")
        rules.append(rule_of(rule, str(number), where))
    weights = None
    if table["kind"] == "lexical":
        name = table.get("weights", "router.npz")
        weights = root / user_path(name, f"{file}: router.weights")
        if not weights.is_file():
            fact = f"weights = {name!r}: no file {weights}"
            raise CompositionError(f"{file}: router.weights", fact, "train the router")
    return RouterSpec(
        kind=table["kind"],
        fallback=table["fallback"],
        threshold=table.get("threshold"),
        margin=table.get("margin", DEFAULT_MARGIN),
        prefer_resident=table.get("prefer_resident", 0.0),
        match=table.get("match", "first"),
        rules=tuple(rules),
        weights=weights,
        num_neighbours=table.get("k", NUM_NEIGHBOURS),
        similarity=table.get("similarity", SIMILARITY),
        model=_router_model(table, root, f"{file}: router") if _asks_a_model(table) else None,
        question=table.get("question", llm.QUESTION),
        max_tokens=table.get("max_tokens", llm.MAX_TOKENS),
    )


def _with_examples(
    router: RouterSpec | None, values: Mapping[str, Any], names: Sequence[str], root: Path, file: str
) -> RouterSpec | None:
    """The router with all its examples, those in [[expert]] tables first. Only a knn router may have examples."""
    found: list[Example] = []
    for number, table in enumerate(values["expert"], start=1):
        where = f"{file}: expert[{number}] {table['name']!r}.examples"
        if "examples" in table and (router is None or router.kind != "knn"):
            fact = "examples have no meaning without a knn router"
            raise CompositionError(where, fact, 'give [router] kind = "knn" or leave examples out')
        if "examples" in table and "count" in table:
            fact = f"the same examples would be those of {table['count']} experts"
            raise CompositionError(where, fact, "give examples to experts of a name of their own")
        found += [Example(table["name"], text) for text in table.get("examples", ())]
    if router is None or router.kind != "knn":
        return router
    name = values["router"].get("examples")
    if name is not None:
        where = f"{file}: router.examples"
        found += read_examples(root / user_path(name, where), names, router.fallback)
    if all(example.expert == router.fallback for example in found):
        fact = f"there are {len(found)} examples, none of an expert other than the fallback"
        remedy = 'give [[expert]] examples = ["..."], or router.examples, a file of JSON lines'
        raise CompositionError(f"{file}: router", fact, remedy)
    return replace(router, examples=tuple(found))


def _asks_a_model(table: Mapping[str, Any]) -> bool:
    return table["kind"] == "llm" or (table["kind"] == "knn" and "checkpoint" in table)


def _router_model(table: Mapping[str, Any], root: Path, where: str) -> Expert:
    if "{prompt}" not in table.get("question", llm.QUESTION):
        raise CompositionError(f"{where}.question", "{prompt} is not in it", "write {prompt} where the prompt goes")
    return _one_expert({"name": llm.ROUTER, **table}, root, where)


def _expect_expert(name: str, names: Sequence[str], where: str, key: str) -> None:
    if name not in names:
        raise CompositionError(where, f"{key} = {name!r} is not an expert of this composition", name_hint(name, names))
