"""Damaged GGUF files: numbers put anywhere into a header are refused in one line, and none is believed unseen."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from tests.fuzz import mutate
from tests.fuzz.test_files import holds

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.gguf.header import read_header

gguf = pytest.importorskip("gguf")

from coterie.models.gguf.file import open_gguf  # noqa: E402


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def file_of(keys: bytes = b"", num_keys: int = 1, tensors: bytes = b"", num_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + keys + tensors + bytes(64)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_token_list([b"a", b"b", b"c"])
    writer.add_token_scores([0.0, 1.0, 2.0])
    for name, shape in (("token_embd.weight", (3, 32)), ("output_norm.weight", (32,))):
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_file_is_read(sound: Path) -> None:
    assert read_header(sound).tensors[0].shape == (3, 32)
    assert open_gguf(sound).metadata["tokenizer.ggml.scores"] == [0.0, 1.0, 2.0]


def test_every_type_of_value_is_what_the_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kinds, numbers = gguf.GGUFValueType, {"INT": -3, "UINT": 200, "FLOAT": 1e-05, "BOOL": True}
    for kind in kinds:
        if kind not in (kinds.STRING, kinds.ARRAY):
            number = numbers[kind.name.rstrip("0123456789")]
            writer.add_key_value(f"one.{kind.name}", number, kind)
            writer.add_key_value(f"two.{kind.name}", [number, number], kinds.ARRAY, kind)
    writer.add_string("text", "\u00e9\u4e2d\n")
    writer.add_array("texts", ["", "a\u00e9"])
    writer.add_custom_alignment(128)
    writer.add_tensor("odd", np.arange(3, dtype=np.int8))
    writer.add_tensor(
        "packed", np.arange(2 * 68, dtype=np.uint8).reshape(2, 68), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs, ours = gguf.GGUFReader(path), open_gguf(path)
    expected = {name: found.contents() for name, found in theirs.fields.items() if not name.startswith("GGUF.")}
    expected["one.FLOAT32"] = 1e-05  # a decimal, where the package gives the float32's own value
    assert dict(ours.metadata) == expected
    assert {name: type(value) for name, value in ours.metadata.items()} == {k: type(v) for k, v in expected.items()}
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.type, found.shape) == (tensor.tensor_type.name, tuple(reversed(tensor.shape.tolist())))
        assert found.rows.tobytes() == tensor.data.tobytes()


def test_the_other_byte_order_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64))
    with pytest.raises(UnsupportedError, match="order of another machine"):
        open_gguf(tmp_path / "x.gguf")


def test_damaged_headers(sound: Path, tmp_path: Path) -> None:
    data = sound.read_bytes()

    def use(rng: random.Random) -> None:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 2, 4))):
            at, width = rng.randrange(400), rng.choice((1, 4, 8))
            number = rng.choice((0, 1, 2, 8, 9, 2**31, 2**32 - 1, 2**40, 2**62, 2**64 - 1))
            changed[at : at + width] = (number % 256**width).to_bytes(width, "little")
        (tmp_path / "x.gguf").write_bytes(changed if rng.random() < 0.8 else mutate.raw(rng, data))
        for tensor in open_gguf(tmp_path / "x.gguf").tensors.values():
            if tensor.float_type:
                tensor.values(slice(None))

    assert holds(use, 150) > 75


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (file_of(key(b"a", 9, struct.pack("<IQ", 0, 2**60))), "an array of 1152921504606846976 elements has"),
        (file_of(key(b"a", 9, struct.pack("<IQ", 8, 2**60))), "there are 1152921504606846976 texts"),
        (file_of(key(b"a", 9, struct.pack("<IQ", 9, 2**60))), "an array of arrays"),
        (file_of(key(b"a", 8, struct.pack("<Q", 2**63))), "a key's value has 9223372036854775808 bytes"),
        (file_of(key(b"a", 77, b"")), "a value has type 77"),
        (file_of(num_keys=2**60), "there are 1152921504606846976 keys"),
        (file_of(num_keys=0, num_tensors=2**60), "there are 1152921504606846976 tensors"),
        (file_of(b"", 0, text(b"x") + struct.pack("<I", 2**31), 1), "a tensor has 2147483648 axes"),
        (file_of(b"", 0, text(b"x") + struct.pack("<IQQIQ", 2, 2**33, 2**31, 0, 0), 1), "more elements than"),
        (file_of(b"", 0, text(b"x") + struct.pack("<IQIQ", 1, 4, 0, 2**62), 1), "a tensor begins at byte 46116860"),
        (file_of(b"", 0, text(b"x") + struct.pack("<IQIQ", 1, 64, 0, 0), 1), "tensor x ends at byte "),
        (file_of(b"", 0, text(b"x") + struct.pack("<IQIQ", 1, 0, 0, 0), 1), "has no elements"),
        (file_of(b"", 0, 2 * (text(b"x") + struct.pack("<IQIQ", 1, 4, 0, 0)), 2), "the tensor x once more"),
        (file_of(2 * key(b"a", 0, b"1"), 2), "the key a once more"),
        (file_of(key(b"a", 8, text(b"\xff"))), "a key's value is no text"),
        (file_of(key(b"general.alignment", 4, struct.pack("<I", 3))), "general.alignment is 3"),
    ],
)
def test_counts_that_do_not_fit_are_refused_unread(data: bytes, fact: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    begun_s = time.process_time()
    with pytest.raises(CheckpointError, match=f"is not a whole GGUF file .*{fact}"):
        open_gguf(tmp_path / "x.gguf")
    assert time.process_time() - begun_s < 2
