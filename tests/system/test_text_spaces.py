"""Text completions by vocabularies that spell spaces as letters (SentencePiece's kind): an answer goes on with its
prompt, so its first word has the space before it that such a tokenizer leaves out at the beginning of a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.tiny import SPECIAL
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer

from coterie.api import Coterie

SPACE = "\u2581"
PROMPT, PIECES = "The [sky]", [f"{SPACE}is", f"{SPACE}blue", ".", SPACE]  # a scripted expert goes on with a bracket
SAID = " is blue. "
LLAMA_2, MISTRAL = "llama-2", "mistral"  # two ways to say the same: normalizer and Strip, or Metaspace and itself


def write(folder: Path, kind: str) -> None:
    write_scripted(folder, PIECES, "")
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocabulary |= {piece: number for number, piece in enumerate((*SPECIAL, *PIECES), 256)}
    library = LibraryTokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token=SPECIAL[0]))
    library.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    if kind == LLAMA_2:
        library.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        spaces = decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
        spaces = decoders.ByteFallback(), decoders.Metaspace(SPACE, prepend_scheme="first")
    library.decoder = decoders.Sequence(list(spaces))
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": SPECIAL[0]}))


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    root = tmp_path_factory.mktemp("spaces")
    for kind in (LLAMA_2, MISTRAL):
        write(root / kind, kind)
    with served(Coterie.open(root)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(params=[LLAMA_2, MISTRAL])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def complete(http: httpx.Client, model: str, **options: object) -> dict:
    got = http.post("/v1/completions", json={"model": model, "prompt": PROMPT, "seed": 1, **options})
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]


def test_the_first_word_has_its_space(http: httpx.Client, kind: str) -> None:
    assert complete(http, kind)["text"] == SAID
    assert complete(http, kind, echo=True)["text"] == PROMPT + SAID
    tokens = http.post("/tokenize", json={"model": kind, "prompt": PROMPT}).json()["tokens"]
    assert complete(http, kind, prompt=tokens)["text"] == SAID
    assert complete(http, kind, prompt=tokens, echo=True)["text"] == PROMPT + SAID


@pytest.mark.parametrize("echo", [False, True])
def test_a_streams_first_word_too(http: httpx.Client, kind: str, echo: bool) -> None:
    asked = {"model": kind, "prompt": PROMPT, "stream": True, "echo": echo}
    text = http.post("/v1/completions", json=asked).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == PROMPT * echo + SAID


def test_a_stop_string_may_begin_with_it(http: httpx.Client, kind: str) -> None:
    got = complete(http, kind, stop=[" is"])
    assert (got["text"], got["finish_reason"]) == ("", "stop")
    assert complete(http, kind, stop=[" blue"])["text"] == " is"


@pytest.mark.parametrize("echo", [False, True])
def test_tokens_stand_where_their_offsets_say(http: httpx.Client, kind: str, echo: bool) -> None:
    got = complete(http, kind, echo=echo, logprobs=1)
    text, found = got["text"], got["logprobs"]
    begun = len(PROMPT) * echo
    answer = [place for place, offset in enumerate(found["text_offset"]) if offset >= begun]
    words = [found["tokens"][place] for place in answer]
    assert words[:4] == [piece.replace(SPACE, " ") for piece in PIECES]
    for place, word in zip(answer[:4], words, strict=False):
        assert text[found["text_offset"][place] :].startswith(word)


def test_without_a_template_a_chat_goes_on_with_a_text_too(http: httpx.Client, kind: str) -> None:
    asked = {"model": kind, "messages": [{"role": "user", "content": PROMPT}], "seed": 1}
    assert http.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"] == SAID
