"""Safetensors headers and shard indexes: what is accepted, and one clear sentence for every kind of damage."""

import json
from math import prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.layout import FileIdentity
from coterie.checkpoint.safetensors import read_header
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}


def header_of(tensors):
    """Header entries for tensors given as name -> (dtype, shape), back to back."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header, at


def write(path, header, data_bytes, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data_bytes))
    return path


@pytest.fixture
def good(tmp_path):
    header, size = header_of({"a": ("F32", (3, 5)), "b": ("BF16", (7,)), "empty": ("F16", (0, 4)), "one": ("I64", ())})
    return write(tmp_path / "model.safetensors", header, size)


def test_a_good_header_gives_absolute_offsets(good):
    tensors = read_header(good)
    start = 8 + int.from_bytes(good.read_bytes()[:8], "little")
    assert {name: (t.offset - start, t.size_bytes) for name, t in tensors.items()} == {
        "a": (0, 60),
        "b": (60, 14),
        "empty": (74, 0),
        "one": (74, 8),
    }
    assert tensors["b"].dtype is DType.BF16
    assert tensors["a"].shape == (3, 5)
    status = good.stat()
    assert tensors["a"].shard.identity == FileIdentity.of(status)
    assert tensors["a"].shard.identity.ctime_ns == status.st_ctime_ns


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


DAMAGE = {
    "not a list": (entry(shape="2x2"), 16, "is not a list of whole numbers"),
    "negative": (entry(shape=[-2, -2]), 16, "is not a list of whole numbers"),
    "boolean": (entry(shape=[True, 4]), 16, "is not a list of whole numbers"),
    "three offsets": (entry(data_offsets=[0, 16, 32]), 16, "is not a list of whole numbers"),
    "backwards": (entry(data_offsets=[16, 0]), 16, "span -16 bytes but F32 [2, 2] needs 16"),
    "too small": (entry(data_offsets=[0, 8]), 16, "span 8 bytes but F32 [2, 2] needs 16"),
    "beyond": (entry(data_offsets=[8, 24]), 16, "ends at byte 24 of the data section, which has 16"),
    "unknown dtype": (entry(dtype="F77"), 16, "element type 'F77' is not one of the safetensors format"),
    "dtype no text": (entry(dtype=["F32"]), 16, "is not one of the safetensors format"),
    "incomplete": ({"a": {"dtype": "F32", "shape": [1]}}, 4, "lacks dtype, shape or data_offsets"),
    "entry no object": ({"a": [1]}, 4, "lacks dtype, shape or data_offsets"),
    "no object": ([1, 2], 0, "holds a JSON list where an object is expected"),
    "bad JSON": (b'{"a": ', 0, "not valid JSON at line 1"),
    "not text": (b'{"\xff\xff": 1}', 0, "not UTF-8 text"),
    "twice": (b'{"a": 1, "a": 2}', 0, "'a' appears twice"),
    "overlap": (
        {**entry(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}},
        16,
        "a and b overlap at byte",
    ),
}


@pytest.mark.parametrize(("header", "data_bytes", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_headers(tmp_path, header, data_bytes, sentence):
    path = write(tmp_path / "model.safetensors", header, data_bytes)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert sentence in str(caught.value)
    assert str(path) in caught.value.where


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes, too few"),
        (b"\x10\0\0", "has 3 bytes, too few"),
        ((100).to_bytes(8, "little") + b"{}", "says that its header has 100 bytes but the whole file has 10"),
        ((2**63).to_bytes(8, "little") + b"{}", "says that its header has 9223372036854775808 bytes but"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d", "is a pointer of Git LFS, not the file itself"),
        (b"version ", "is a pointer of Git LFS, not the file itself"),
        (bytes(8) + b"{}", "says that its header has 0 bytes; between 2 and 100000000 are possible"),
    ],
)
def test_header_lengths(tmp_path, content, sentence):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="safetensors") as caught:
        read_header(path)
    assert sentence in str(caught.value)


def test_a_file_cut_short_anywhere_is_refused(good):
    whole = good.read_bytes()
    for size in range(0, len(whole), 7):
        good.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_header(good)


def test_an_absurd_header_within_a_large_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    with pytest.raises(CheckpointError, match="between 2 and 100000000"):
        read_header(path)


def test_foreign_element_types_are_unsupported_not_damaged(tmp_path):
    path = write(tmp_path / "model.safetensors", entry(dtype="F8_E5M2", data_offsets=[0, 4]), 16)
    with pytest.raises(UnsupportedError, match="F8_E5M2 is not supported"):
        read_header(path)


@pytest.fixture
def sharded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weight_map = {}
    for shard, names in {"one.safetensors": ("a", "b"), "two.safetensors": ("c",)}.items():
        header, size = header_of(dict.fromkeys(names, ("F32", (4,))))
        write(tmp_path / shard, header, size)
        weight_map |= dict.fromkeys(names, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def reindex(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_joined(sharded):
    tensors = Checkpoint.open(sharded).tensors
    assert {name: t.shard.path.rpartition("/")[2] for name, t in tensors.items()} == {
        "a": "one.safetensors",
        "b": "one.safetensors",
        "c": "two.safetensors",
    }


def test_index_mistakes(sharded):
    mistakes = {
        "names three.safetensors, which does not exist": {"a": "one.safetensors", "c": "three.safetensors"},
        "says that c is in one.safetensors, which does not hold it": {"a": "one.safetensors", "c": "one.safetensors"},
        "says that d is in one.safetensors, which does not hold it": {"d": "one.safetensors"},
        "names '../one.safetensors', which is not a file of this folder": {"a": "../one.safetensors"},
        "has no weight_map": {},
    }
    for sentence, weight_map in mistakes.items():
        reindex(sharded, weight_map)
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.open(sharded)
        assert sentence in str(caught.value)


def test_a_tensor_in_two_shards(sharded):
    header, size = header_of({"c": ("F32", (4,)), "a": ("F32", (4,))})
    write(sharded / "two.safetensors", header, size)
    with pytest.raises(CheckpointError, match=r"a is in one\.safetensors and again in two\.safetensors"):
        Checkpoint.open(sharded)


def test_missing_files(tmp_path, good):
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(good)
    with pytest.raises(CheckpointError, match=r"config\.json\] the file does not exist"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    good.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors .* \(but pytorch_model\.bin\)"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{,}", "null"])
def test_a_damaged_config(good, text):
    (good.parent / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(good.parent)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_a_sentence_or_a_sound_header(good, data):
    """Whatever bytes are changed: either an error of ours, or tensors that lie within the file and do not overlap."""
    whole = bytearray(good.read_bytes())
    changed = good.with_name("changed.safetensors")
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 80))] = data.draw(st.integers(0, 255))
    changed.write_bytes(whole)
    try:
        tensors = read_header(changed)
    except UsageError:
        return
    covered = [range(t.offset, t.offset + t.size_bytes) for t in tensors.values()]
    assert all(piece.stop <= len(whole) for piece in covered)
    assert sum(len(piece) for piece in covered) == len(set().union(*covered))
