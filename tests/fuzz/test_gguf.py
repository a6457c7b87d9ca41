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

from coterie.core.errors import CheckpointError
from coterie.models.gguf.header import check_header

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
    check_header(sound)
    assert open_gguf(sound).metadata["tokenizer.ggml.scores"] == [0.0, 1.0, 2.0]


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
    ],
)
def test_counts_that_do_not_fit_are_refused_unread(data: bytes, fact: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    begun_s = time.process_time()
    with pytest.raises(CheckpointError, match=f"is not a whole GGUF file .*{fact}"):
        open_gguf(tmp_path / "x.gguf")
    assert time.process_time() - begun_s < 2
