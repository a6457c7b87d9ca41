"""Tokenizer and detokenizer: text comes back whole, piece by piece, and never as half a character."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.tokenizers_made import of_bytes
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

from coterie.checkpoint.generation import end_ids
from coterie.checkpoint.tokenizer import LONG, Tokenizer
from coterie.core.errors import CheckpointError


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer with a token per byte and <s>, </s> as special tokens."""
    folder = tmp_path_factory.mktemp("bytes")
    library = of_bytes(["<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    library.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory):
    """A sentencepiece-like tokenizer: a space before each word, byte fallback, the first space stripped."""
    folder = tmp_path_factory.mktemp("metaspace")
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", *"abcde", "\u2581ab", "\u2581c", "de", "\u00e9"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", "a"), ("\u2581a", "b"), ("\u2581", "c"), ("d", "e")]
    vocabulary["\u2581a"] = len(vocabulary)
    library = LibraryTokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.save(str(folder / "tokenizer.json"))
    return folder


def stream(tokenizer, ids):
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(token) for token in ids]
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("said", ["ab", "ab ", "\u00e9", "\U0001f600"])
def test_a_first_word_behind_others_keeps_its_space(metaspace, said):
    """An answer that goes on with a text; alone it would begin without."""
    tokenizer = Tokenizer.from_folder(metaspace)
    begun, rest = tokenizer.encode(said, False), tokenizer.encode("c de", False)
    assert "".join(stream(tokenizer, rest)) == "c de"
    behind = tokenizer.detokenizer()
    behind.follow(begun)
    pieces = [*map(behind.push, rest), behind.flush()]
    wanted = tokenizer.decode([*begun, *rest])[len(tokenizer.decode(begun)) :]
    assert "".join(pieces) == wanted == " c de"
    nothing = tokenizer.detokenizer()
    nothing.follow([])
    assert "".join([*map(nothing.push, rest), nothing.flush()]) == "c de"


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_join_to_the_text(byte_level, text):
    tokenizer = Tokenizer.from_folder(byte_level)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=24))
def test_any_bytes_come_out_as_python_decodes_them(byte_level, data):
    tokenizer = Tokenizer.from_folder(byte_level)
    table = {v: k for k, v in _byte_of().items()}
    ids = [tokenizer.token_id(table[byte]) for byte in data]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == data.decode("utf-8", errors="replace")


def _byte_of():
    """Character of the byte-level alphabet -> byte, by the rule of the GPT-2 tokenizer: printable bytes stay."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(others)}


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="abcde \u00e9\u4e2d\U0001f600", max_size=20))
def test_leading_spaces_and_byte_fallback(metaspace, text):
    tokenizer = Tokenizer.from_folder(metaspace)
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_long_texts_are_cut_and_joined_as_short_ones(kind, request):
    """By another way into the library, which lets threads go on."""
    tokenizer = Tokenizer.from_folder(request.getfixturevalue(kind))
    text = " ab c \u00e9de\u6f22 " * 2000
    assert len(text) > LONG
    for special in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=special)
        assert ids == tokenizer.library.encode(text, add_special_tokens=special).ids
    assert len(ids) > LONG
    assert tokenizer.decode(ids) == tokenizer.library.decode(ids) == text.removeprefix(" " * (kind == "metaspace"))


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize("unit", ["80", "e282", "f09f98", "efbfbd", "80e282ac", "f0e2"])
def test_what_never_becomes_a_character_is_not_held_for_ever(kind, unit, request):
    tokenizer, sizes = Tokenizer.from_folder(request.getfixturevalue(kind)), []
    of_byte = {tokenizer.token_bytes(token): token for token in reversed(range(256))}
    ids = [of_byte[bytes([byte])] for byte in bytes.fromhex(unit) * 60]
    decode = tokenizer.decode
    tokenizer.decode = lambda given: (sizes.append(len(given)), decode(given))[1]
    stream = tokenizer.detokenizer()
    said = "".join([stream.push(token) for token in ids])
    assert max(sizes) < 150
    if kind == "byte_level":  # the other's whole runs of bytes are broken where one is
        assert said + stream.flush() == bytes.fromhex(unit * 60).decode(errors="replace")


def test_special_tokens(byte_level):
    tokenizer = Tokenizer.from_folder(byte_level)
    ids = tokenizer.encode("hi")
    assert ids[0] == tokenizer.token_id("<s>") == 256
    assert tokenizer.encode("hi", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode([*ids, 257]) == "hi"
    assert tokenizer.vocab_size == 256  # without <s> and </s>, which were added
    assert tokenizer.token_id("<nothing>") is None
    assert tokenizer.encode("a</s>", add_special_tokens=False)[-1] == 257


def test_equal_files_share_one_tokenizer(byte_level, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    assert Tokenizer.from_folder(byte_level) is Tokenizer.from_folder(tmp_path)


def test_missing_and_damaged_tokenizers(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json\] the file does not exist"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(CheckpointError, match=r"\(but tokenizer\.model, vocab\.txt\)"):
        Tokenizer.from_folder(tmp_path)
    for damage in (b"", b"{}", b"\xff\xfe"):
        (tmp_path / "tokenizer.json").write_bytes(damage)
        with pytest.raises(CheckpointError, match="not a tokenizer"):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(CheckpointError, match="is a pointer of Git LFS, not the file itself; fetch it: git lfs pull"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"version of something else")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_end_tokens(byte_level, tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(json.dumps(content))

    assert end_ids(tmp_path, {}) == ()
    write("tokenizer_config.json", {"eos_token": "</s>"})
    assert end_ids(tmp_path, {}) == ()
    (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    assert end_ids(tmp_path, {}) == (257,)
    write("tokenizer_config.json", {"eos_token": {"content": "<s>", "lstrip": False}})
    assert end_ids(tmp_path, {}) == (256,)
    assert end_ids(tmp_path, {"eos_token_id": 5}) == (5,)
    write("generation_config.json", {"eos_token_id": [7, 8, 7]})
    assert end_ids(tmp_path, {"eos_token_id": 5}) == (7, 8)
    write("generation_config.json", {"temperature": 1.0})
    assert end_ids(tmp_path, {"eos_token_id": [5, 6]}) == (5, 6)
    write("generation_config.json", {"eos_token_id": ["x"]})
    with pytest.raises(CheckpointError, match=r"generation_config\.json\] eos_token_id is \['x'\]"):
        end_ids(tmp_path, {})
    write("generation_config.json", {})
    write("tokenizer_config.json", {"eos_token": "<end>"})
    with pytest.raises(CheckpointError, match="eos_token '<end>' is not a token"):
        end_ids(tmp_path, {})


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_the_bytes_of_tokens_join_to_the_text(kind, request):
    tokenizer = Tokenizer.from_folder(request.getfixturevalue(kind))
    for text in ("plain words", " naïve café ☕ 𝄞", "a\nb\t  c"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        found = b"".join(tokenizer.token_bytes(i) for i in ids).decode()
        assert found.removeprefix(" ") == text.removeprefix(" ")
    assert tokenizer.token_bytes(10**6) == b""


def test_a_special_tokens_bytes_are_its_name(byte_level):
    tokenizer = Tokenizer.from_folder(byte_level)
    assert tokenizer.token_bytes(tokenizer.token_id("</s>")) == b"</s>"
