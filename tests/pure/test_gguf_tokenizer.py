"""Tokenizers from GGUF metadata: the tokens of llama.cpp, or of the published tokenizer where that one differs."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tests.pure.test_grammar import walk
from tests.pure.vocabularies import LETTERS, PARTS, UNREACHED, G, byte_level, llama_cpp, sentencepiece, texts
from tokenizers import Tokenizer as LibraryTokenizer

from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.gguf_split import KNOWN_SPLITS, split_of
from coterie.checkpoint.gguf_tokenizer import tokenizer_files
from coterie.checkpoint.gguf_vocabulary import Vocabulary, listed_merges, scored_merges
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import CheckpointError, CoterieError, UnsupportedError

CASED = ("tekken", "gpt-4o", "kanana2", "llama4")
DEEPSEEK = ("deepseek-llm", "deepseek-coder")
WHOLE = ("llama4", "chatglm-bpe")  # as tiktoken has it: a piece that is a token is that token
DISTINCT = sorted({split_of(name): name for name in reversed(KNOWN_SPLITS)}.values())
USER_DEFINED = ("<think>", "<|end|>", "\n\n", "  ", "    ")
SPELLED = ("<think>", "<|end|>", "\n\n", "\u2581\u2581", "\u2581\u2581\u2581\u2581")  # some writers spell spaces
END = byte_level(None)[G + "tokens"].index("<|end|>")
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


def folder_of(metadata: dict[str, Any], path: Path) -> Path:
    """The files, written."""
    path.mkdir(exist_ok=True)
    for name, text in tokenizer_files(metadata).items():
        (path / name).write_text(text, encoding="utf-8")
    return path


def made(metadata: dict[str, Any]) -> Tokenizer:
    """Our tokenizer of the files."""
    return Tokenizer(LibraryTokenizer.from_str(tokenizer_files(metadata)["tokenizer.json"]))


def like_llama_cpp(pre: str, text: str) -> str:
    """A text of which llama.cpp's tokens are those that were published."""
    if pre in CASED:  # it takes capitals to be those of ASCII, and no mark to be part of a word
        text = "".join(c for c in text if c.isascii() or unicodedata.category(c)[:2] in ("Lo", "Nd", "No", "So", "Zs"))
    if pre in DEEPSEEK:  # it leaves digits together, and no space of other scripts to the class of Han
        text = "".join(c for c in text if c not in "123456780\u00bd\u0663\u00b2\u3000\u2028")
    return text.replace(UNREACHED, "") if pre in WHOLE else text


@pytest.mark.parametrize("pre", DISTINCT)
def test_byte_level_tokens_are_those_of_llama_cpp(pre: str, tmp_path: Path) -> None:
    compare(pre, texts(60, 1), tmp_path / "x.gguf")


@pytest.mark.long
@pytest.mark.parametrize("pre", KNOWN_SPLITS)
def test_byte_level_tokens_are_those_of_llama_cpp_in_many_texts(pre: str, tmp_path: Path) -> None:
    compare(pre, texts(2000, 5), tmp_path / "x.gguf")


def compare(pre: str, given: list[str], file: Path) -> None:
    """Let both cut and merge the same texts."""
    metadata = byte_level(pre)
    theirs, ours = llama_cpp(metadata, file), made(metadata)
    for text in (like_llama_cpp(pre, text) for text in given):
        composed = unicodedata.normalize("NFC", text) if split_of(pre).composed else text  # which it leaves to others
        assert ours.encode(text) == theirs(composed), ascii(text)


@pytest.mark.parametrize(
    ("prefix", "user_defined"), [(True, USER_DEFINED), (False, USER_DEFINED), (False, SPELLED), (True, SPELLED)]
)
def test_sentencepiece_tokens_are_those_of_llama_cpp(
    prefix: bool, user_defined: tuple[str, ...], tmp_path: Path
) -> None:
    metadata = sentencepiece(prefix, user_defined)
    theirs, ours = llama_cpp(metadata, tmp_path / "x.gguf"), made(metadata)
    used = {token for text in texts(150, 2) for token in ours.encode(text)}
    assert all(ours.encode(text) == theirs(text) for text in texts(150, 2))
    assert used > {metadata[G + "tokens"].index(token) for token in user_defined}
    kinds = {metadata[G + "token_type"][token] for token in used}
    assert kinds == {1, 2, 3, 4, 5, 6}


@pytest.mark.long
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokens_are_those_of_llama_cpp_in_many_texts(prefix: bool, tmp_path: Path) -> None:
    metadata = sentencepiece(prefix, USER_DEFINED)
    theirs, ours = llama_cpp(metadata, tmp_path / "x.gguf"), made(metadata)
    assert [text for text in texts(5000, 6) if ours.encode(text) != theirs(text)] == []


def test_phi_3s_tokens_take_the_blanks_after_them(tmp_path: Path) -> None:
    named = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|user|>", "<|end|>")
    metadata = sentencepiece(True, named)
    theirs, ours = llama_cpp(metadata | {"general.name": "Phi-3"}, tmp_path / "x.gguf"), made(metadata)
    for text in ("<|user|>\n It's<|end|> \n<|assistant|>\n", "<|endoftext|>\n it", "<s> \n it", "</s> \n it"):
        assert ours.encode(text) == theirs(text)
    assert ours.encode("<|user|>\n \nit") == ours.encode("<|user|>it") != ours.encode("<|user|> <s>\nit")


def test_mistrals_tokens_have_no_space_behind_them(tmp_path: Path) -> None:
    metadata = sentencepiece(True, ("[INST]", "[/INST]"))
    ours = made(metadata)
    legacy = llama_cpp(sentencepiece(True, ("[INST]", "[/INST]")), tmp_path / "x.gguf")
    bare = llama_cpp({**metadata, f"{G}add_space_prefix": False, f"{G}add_bos_token": False}, tmp_path / "y.gguf")
    for text in texts(100, 4):
        if (
            "<s>" not in text and "<unk>" not in text and not text.startswith(" ")
        ):  # a space that is there is not put again
            assert ours.encode(text) == legacy(text)
        prompt = f"<s>[INST] {text}[/INST]{text}</s>[INST]it"
        assert ours.encode(prompt, add_special_tokens=False) == bare(prompt)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["it", "'s", " IT", "'", "S", " 12345", "!?", "\n\n"]),
        ("olmo", ["it", "'s", " IT", "'", "S", " 12345", "!?", "\n\n"]),
        ("smollm", ["it", "'s", " IT", "'", "S", " ", "1", "2", "3", "4", "5", "!?", "\n\n"]),
        ("llama-bpe", ["it", "'s", " IT", "'S", " ", "123", "45", "!?\n\n"]),
        ("dbrx", ["it", "'s", " IT", "'S", " ", "123", "45", "!?\n\n"]),
        ("qwen2", ["it", "'s", " IT", "'S", " ", "1", "2", "3", "4", "5", "!?\n\n"]),
        ("seed-coder", ["it", "'s", " IT", "'S", " ", "1", "2", "3", "4", "5", "!?", "\n\n"]),
        ("tekken", ["it", "'s", " IT", "'S", " ", "1", "2", "3", "4", "5", "!?\n\n"]),
        ("gpt-4o", ["it's", " IT'S", " ", "123", "45", "!?\n\n"]),
        ("deepseek-coder", ["it", "'", "s", " IT", "'", "S", " ", "1", "2", "3", "4", "5", "!?", "\n", "\n"]),
        ("deepseek-v3", ["it", "'s", " IT", "'S", " ", "123", "45", "!?\n\n"]),
        ("default", ["it", "'", "s", " IT", "'", "S", " ", "123", "45", "!?", "\n\n"]),
    ],
)
def test_pieces(pre: str, pieces: list[str]) -> None:
    assert cut(pre, "it's IT'S 12345!?\n\n") == pieces


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("tekken", "\u041f\u0440\u0438\u0412\u0435\u0442", ["\u041f\u0440\u0438", "\u0412\u0435\u0442"]),
        ("gpt-4o", "\u00e9\u00c9a\u0301'RE", ["\u00e9", "\u00c9a\u0301'RE"]),
        ("deepseek-llm", "a12", ["a", "1", "2"]),
        ("deepseek-llm", "a\u10c7b\u0561", ["a", "\u10c7", "b", "\u0561"]),
        ("deepseek-llm", "\u00b0  ", ["\u00b0", "  "]),
        ("deepseek-coder", "\u3000'", ["\u3000", "'"]),
        ("qwen2", "a\u017f'\u017f", ["a\u017f", "'\u017f"]),  # of an old long s, s is the capital
    ],
)
def test_where_llama_cpp_cuts_otherwise_pieces_are_as_published(pre: str, text: str, pieces: list[str]) -> None:
    assert cut(pre, text) == pieces


def cut(pre: str, text: str) -> list[str]:
    """The pieces of a text, within which alone tokens are merged."""
    library = LibraryTokenizer.from_str(tokenizer_files(byte_level(pre))["tokenizer.json"])
    assert library.pre_tokenizer is not None
    return [text[begin:end] for _, (begin, end) in library.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", ["qwen2", "olmo", "command-r", "gpt-2", "llama-bpe", "tekken"])
def test_only_some_compose_characters(pre: str) -> None:
    ours = made(byte_level(pre))
    assert (ours.encode("e\u0301") == ours.encode("\u00e9")) is (pre in ("qwen2", "olmo", "command-r"))


@pytest.mark.parametrize("metadata", [byte_level("llama-bpe"), sentencepiece(True, ()), sentencepiece(False, SPELLED)])
def test_texts_come_back_whole_and_token_by_token(metadata: dict[str, Any]) -> None:
    ours = made(metadata)
    hidden = ("<s>", "<unk>", "<|end|>")
    for text in texts(150, 3, tuple(part for part in PARTS + LETTERS if part not in hidden)):
        ids, stream = ours.encode(text), ours.detokenizer()
        assert ours.decode(ids) == text
        assert "".join([*map(stream.push, ids), stream.flush()]) == text
        plain = ours.encode(text, add_special_tokens=False)
        assert b"".join(map(ours.token_bytes, plain)).decode() in (text, f" {text}")


@pytest.mark.parametrize(
    ("metadata", "end"),
    [
        (byte_level("llama-bpe"), END),
        (sentencepiece(True, ()), 2),
        (sentencepiece(True, ("[INST]", "[/INST]")), 2),
        (sentencepiece(False, SPELLED), 2),
    ],
)
def test_answers_are_held_to_forms(metadata: dict[str, Any], end: int) -> None:
    ours, schema = made(metadata), {"enum": ["it's  a\u00e9", {"a": [1, "<think>\U0001f600"]}, ["  ", "\u2581"]]}
    said = {json.dumps(json.loads(walk(ours, (end,), schema, seed))) for seed in range(15)}
    assert said == {json.dumps(value) for value in schema["enum"]}


def test_without_types_tokens_are_known_by_names_and_texts() -> None:
    metadata = sentencepiece(False, (), padding_token_id=500)
    typed, bare = made(metadata), made({key: value for key, value in metadata.items() if key != G + "token_type"})
    assert all(bare.encode(text) == typed.encode(text) for text in texts(50, 8))
    assert bare.special_ids == {0, 1, 2}


def test_bytes_are_known_by_their_texts_where_types_call_them_words() -> None:
    metadata = sentencepiece(True, ())
    words = {**metadata, G + "token_type": [1 if kind == 6 else kind for kind in metadata[G + "token_type"]]}
    typed, plain = made(metadata), made(words)
    for text in texts(50, 9):
        assert plain.encode(text) == typed.encode(text)
        assert plain.decode(plain.encode(text)) == typed.decode(typed.encode(text))


def test_merges_that_a_file_has_are_taken_before_scores() -> None:
    metadata = sentencepiece(False, ())
    given = {**metadata, G + "merges": ["i t"], G + "scores": None}
    ids = made({key: value for key, value in given.items() if value is not None}).encode("it", add_special_tokens=False)
    assert [metadata[G + "tokens"][token] for token in ids] == ["it"]
    assert listed_merges({G + "merges": ["  b", "a b"]}) == [(" ", "b"), ("a", "b")]


def test_gemma_4s_merges_are_listed_and_its_scores_mean_nothing() -> None:
    """Its own vocabulary was read once: docs/log.md."""
    metadata = sentencepiece(False, ("<|turn>",), add_space_prefix=False)
    merges = [" ".join(pair) for pair in scored_merges(metadata, Vocabulary.of(metadata))]
    scores = [-1000.0] * len(metadata[G + "tokens"])
    ours = made({**metadata, G + "model": "gemma4", G + "merges": merges, G + "scores": scores})
    theirs = made(metadata)
    for text in [*texts(50, 10), "<|turn>user\n  x"]:
        assert ours.encode(text) == theirs.encode(text)


def test_what_has_neither_token_nor_bytes_is_one_unknown() -> None:
    metadata = sentencepiece(False, ())
    for key in ("tokens", "token_type", "scores"):
        metadata[G + key] = metadata[G + key][:3] + metadata[G + key][259:]
    ids = made(metadata).encode("a\ue000\ue001a", add_special_tokens=False)
    assert [metadata[G + "tokens"][token] for token in ids] == ["a", "<unk>", "a"]


def test_ids_beyond_the_vocabulary_and_empty_tokens_are_none() -> None:
    metadata = byte_level("gpt-2", eos_token_id=2**32 - 1, padding_token_id=10**6)
    metadata[G + "tokens"] = [*metadata[G + "tokens"], "", ""]
    metadata[G + "token_type"] = [*metadata[G + "token_type"], 3, 5]
    config = json.loads(tokenizer_files(metadata)["tokenizer_config.json"])
    assert {key for key in config if key.endswith("_token")} == {"bos_token", "add_bos_token", "add_eos_token"}
    assert made(metadata).encode("it") == made(byte_level("gpt-2")).encode("it")


@pytest.mark.parametrize(
    ("templates", "rendered", "with_tools"),
    [
        ({}, None, None),
        ({"": CHAT}, "<s>[user]hi</s>", "<s>[user]hi</s>"),
        ({"": CHAT, ".tool_use": "{{ tools | length }}"}, "<s>[user]hi</s>", "1"),
    ],
)
def test_chat_templates(
    templates: dict[str, str], rendered: str | None, with_tools: str | None, tmp_path: Path
) -> None:
    metadata = sentencepiece(True, ()) | {f"tokenizer.chat_template{name}": text for name, text in templates.items()}
    template = ChatTemplate.from_folder(folder_of(metadata, tmp_path))
    messages = [{"role": "user", "content": "hi"}]
    assert (template and template.render(messages)) == rendered
    assert (template and template.render(messages, tools=[{"type": "function"}])) == with_tools


def test_a_tokenizer_json_that_a_file_carries_is_taken_if_it_is_whole() -> None:
    metadata = byte_level("gpt-2")
    carried = tokenizer_files(byte_level("qwen2"))["tokenizer.json"]
    assert tokenizer_files({**metadata, "tokenizer.huggingface.json": carried})["tokenizer.json"] == carried
    cut_off = {**metadata, "tokenizer.huggingface.json": carried[:-10]}
    assert tokenizer_files(cut_off) == tokenizer_files(metadata)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"model": None}, UnsupportedError, r"model\] is None, where gpt2"),
        ({"model": "rwkv"}, UnsupportedError, r"'rwkv' \(RWKV.*bert \(WordPiece\) and t5.*--tokenizer FOLDER"),
        ({"model": "t5"}, CheckpointError, r"scores\] holds 0 scores for \d+ tokens"),
        ({"model": "gemma4", "merges": None}, CheckpointError, "holds no merges, and scores do not say them"),
        ({"pre": "new-thing"}, UnsupportedError, r"pre\] names .* 'new-thing', .*qwen2.*--tokenizer FOLDER"),
        ({"tokens": None}, CheckpointError, r"tokens\] holds no tokens"),
        ({"tokens": "abc"}, CheckpointError, r"tokens\] is not a list of str"),
        ({"tokens": ["a", "b", "a"]}, CheckpointError, "holds 'a' as 0 and again as 2"),
        ({"tokens": ["a", "b"], "token_type": [1]}, CheckpointError, "holds 1 types for 2 tokens"),
        ({"merges": None}, CheckpointError, r"merges\] holds no merges"),
        ({"merges": ["ab"]}, CheckpointError, "holds 'ab', which is not two parts"),
        ({"merges": ["a b", "ab "]}, CheckpointError, "holds 'ab ', which is not two parts"),
        ({"merges": ["qqq zzz"]}, CheckpointError, r"merges\] does not fit the tokens: .*qqq"),
        ({"model": "llama", "merges": None}, CheckpointError, r"scores\] holds 0 scores for \d+ tokens"),
        ({"model": "llama", "merges": None, "scores": ["a"]}, CheckpointError, "is not a list of float or int"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Any], kind: type[CoterieError], says: str) -> None:
    with pytest.raises(kind, match=says):
        tokenizer_files(byte_level(**{"pre": "gpt-2", **change}))
