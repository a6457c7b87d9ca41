"""An expert that is a base plus an unmerged LoRA adapter: the base's graph with low-rank changes added to its products.

    base      weights and products unchanged       its tensors stay in the base's files, shared by all its adapters
    adapter   A and B of each adapted module       for a joined one (q, k and v of Phi-3) one A, and B's rows by part

Changes that cannot be added to a product (DoRA, whole tensors, an embedding) must be merged before serving.
Knows nothing about an adapter's files (adapter.py) or where bytes go in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.generation import advised, own_end_ids
from coterie.checkpoint.place import place
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.shapes import trailing
from coterie.core.text import nearest_hint
from coterie.graph.ir import Graph, Kind, Value
from coterie.graph.low_rank import LowRank, linear_weights, with_low_rank
from coterie.models.architecture import shared
from coterie.models.blocks import EMBED_WEIGHT, HEAD_WEIGHT
from coterie.models.fine_tunes.adapter import ADAPTER_WEIGHTS, Adapter, Change, open_adapter
from coterie.models.fine_tunes.adapter import LowRank as Factors
from coterie.models.joined import joined_names, own_name
from coterie.models.model import Model, check_vocabulary
from coterie.models.packing import KEY
from coterie.models.scores import refuse_head
from coterie.models.tensors import equal_bytes


@dataclass(frozen=True, slots=True)
class _Part:
    """An adapter's change to one weight of the graph: rows [first, first + rows) of a module's B, and its A."""

    weight: str
    factors: Factors
    first: int
    rows: int

    @property
    def b(self) -> TensorInfo:
        """Those rows of B, in place in the file; named after the weight."""
        whole, name = self.factors.b, f"{self.weight.removesuffix('.weight')}.lora_B.weight"
        return whole.rows(name, self.first, (self.rows, whole.shape[1]))

    @property
    def a(self) -> TensorInfo:
        """A, named after its module in the file."""
        return replace(self.factors.a, name=f"{self.factors.module}.lora_A.weight")


def open_adapted(base: Model, path: str | Path, name: str = "") -> Model:
    """Open an adapter's folder as an expert on top of an open base; no weights are read.

    Its layout has only the adapter's tensors. Raises CheckpointError if files are missing, damaged or do not fit the
    base, UnsupportedError for changes that cannot be served unmerged.
    """
    adapter = open_adapter(path)
    if base.part_of:
        fact = f"belongs to {base.name}, the text model inside a {base.part_of}, beside which nothing is served"
        raise UnsupportedError(str(adapter.path), fact, "save the text model by itself, and give it as base")
    refuse_head(base.head, str(base.path))
    parts = list(_parts(base, adapter))
    tensors = {info.name: info for part in parts for info in (part.a, part.b)}
    changes = {p.weight: LowRank(_value(p.a), _value(p.b), p.factors.scale) for p in parts}
    made = shared((base.key, tuple(changes.items())), lambda: with_low_rank(base.graph, changes))
    stored = Checkpoint(adapter.path, base.checkpoint.config, tensors)
    layout = place(stored, {w: s for w, s in made.weight_stage.items() if w in tensors}, made.stages)
    own_ends = own_end_ids(adapter.path)
    ends = base.end_ids if own_ends is None else own_ends
    check_vocabulary(adapter.path, base.config.vocab_size, ends)
    return replace(
        base,
        name=name or adapter.path.resolve().name,
        path=adapter.path,
        graph=made.graph,
        key=made.key,
        layout=layout,
        end_ids=ends,
        checkpoint=replace(stored, tensors={**base.checkpoint.tensors, **tensors}),
        base=base,
        advised=advised(adapter.path) or base.advised,
    )


def _value(info: TensorInfo) -> Value:
    return Value(info.name, info.shape, info.dtype, Kind.WEIGHT)


def _parts(base: Model, adapter: Adapter) -> Iterator[_Part]:
    """The changes by weight of the graph, in the order of the adapter's file. Raises as `open_adapted` does."""
    products = linear_weights(base.graph)
    joined = dict(joined_names(base.config.names, base.config.num_layers))  # PEFT adapts the joined matrix as stored
    for stored, change in adapter.changes.items():
        name = own_name(stored, base.config.names)
        factors = _plain(name, change, base, adapter)
        if name == HEAD_WEIGHT and base.config.tied_embeddings:
            _check_tied(adapter)
            weights: tuple[str, ...] = (EMBED_WEIGHT,)
        else:
            weights = joined.get(name, (name,))
        missing = [weight for weight in weights if weight not in products]
        if missing:
            raise _unknown(name, base, adapter)
        shapes = [_shape(base.graph, weight) for weight in weights]
        wanted = (sum(rows for rows, _ in shapes), shapes[0][1])
        adapter.check_shape(name, factors, wanted)
        first = 0
        for weight, (rows, _) in zip(weights, shapes, strict=True):
            yield _Part(weight, factors, first, rows)
            first += rows


def _plain(name: str, change: Change, base: Model, adapter: Adapter) -> Factors:
    """The factors of a change that can be added to a product. Raises UnsupportedError for any other."""
    factors, what, remedy = change.low_rank, "", _merge(base, adapter)
    if change.whole is not None and _is_the_bases(change.whole, name, base):
        what = "saved whole, though it is the base's to the byte, as PEFT does where embedding or head are adapted"
        remedy = f"save the adapter with save_embedding_layers=False, or {remedy}"
    elif change.whole is not None or factors is None:
        what = "a bias or a tensor that was trained whole (modules_to_save)"
        if factors is not None:
            what = "adapted, and saved whole besides, other than the base has it"
    elif factors.magnitude is not None:
        what = "use_dora, which scales the rows of the sum"
    elif factors.is_embedding or name == EMBED_WEIGHT:  # even if a tied head reads it as a product too
        what = "an adapted embedding"
    if factors is None or what:
        raise UnsupportedError(f"{adapter.path / ADAPTER_WEIGHTS}", f"{name} is {what}, not served unmerged", remedy)
    return factors


def _merge(base: Model, adapter: Adapter) -> str:
    """The remedy for an adapter that cannot be served unmerged."""
    if base.checkpoint.config.get(KEY):  # a merge refuses a quantised base
        return f"merge it into the unquantised base: coterie merge BASE {quote(str(adapter.path))} OUT; quantise that"
    return f"merge it: coterie merge {quote(str(base.path or 'BASE'))} {quote(str(adapter.path))} OUT"


def _is_the_bases(whole: TensorInfo, name: str, base: Model) -> bool:
    """Whether a tensor equals the base's; reads both."""
    own = base.checkpoint.tensors.get(EMBED_WEIGHT if base.config.tied_embeddings and name == HEAD_WEIGHT else name)
    return own is not None and equal_bytes(whole, own)


def _check_tied(adapter: Adapter) -> None:
    if adapter.ties:
        fact = f"ensure_weight_tying is true, and {HEAD_WEIGHT} of a base where it is the embedding too is changed"
        raise UnsupportedError(str(adapter.path), fact, "merge it with PEFT, and save the whole model")


def _shape(graph: Graph, weight: str) -> tuple[int, int]:
    rows, columns = graph.values[weight].shape
    return trailing((1, rows)), trailing((1, columns))


def _unknown(name: str, base: Model, adapter: Adapter) -> CheckpointError | UnsupportedError:
    """The error for a weight that no product of the graph reads."""
    if base.config.latent is not None and name.endswith(f"{base.config.latent.names.up}.weight"):
        fact = f"changes {name}, which latent attention reads head by head, not served unmerged"
        return UnsupportedError(str(adapter.path), fact, _merge(base, adapter))
    branches = base.config.branches
    if branches is not None and (name in base.graph.values or "experts" in name):
        fact = f"changes {name}, a matrix of a branch of a mixture-of-experts layer, not served unmerged"
        return UnsupportedError(str(adapter.path), fact, _merge(base, adapter))
    hint = nearest_hint(name, linear_weights(base.graph))
    fact = f"changes {name}, of which the base {base.name} has no product{hint}"
    return CheckpointError(str(adapter.path), fact, adapter.other_base)
