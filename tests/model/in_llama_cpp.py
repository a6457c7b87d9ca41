"""What llama.cpp says about a GGUF file: tokens of a text, and logits behind every token, on one thread.

Keys and values are float32, attention is plain, and a step has one token.
"""

import ctypes
from contextlib import contextmanager

import llama_cpp
import numpy as np

_silence = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library calls it later
MAX_TOKENS = 64


def logits(path, tokens):
    """Logits behind each token [tokens, V]."""
    with _opened(path) as (_, _, step):
        return np.array([step(token) for token in tokens])


def greedy(path, text, count):
    """Tokens of a text, and `count` more."""
    with _opened(path) as (vocab, _, step):
        prompt = _tokens(vocab, text)
        last = [step(token) for token in prompt][-1]
        drawn = [int(last.argmax())]
        while len(drawn) < count:
            drawn.append(int(step(drawn[-1]).argmax()))
        return prompt, drawn


def tokens(path, text):
    """Tokens of a text, with what stands around it."""
    with _opened(path) as (vocab, _, _):
        return _tokens(vocab, text)


def rows(path, ids):
    """What an encoder has behind its last layer [tokens, D]."""
    with _opened(path, embeddings=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE) as (_, context, _):
        kept = (ctypes.c_int32 * len(ids))(*ids)  # the library reads it later
        batch = llama_cpp.llama_batch_get_one(kept, len(ids))
        assert llama_cpp.llama_encode(context, batch) == 0
        width = llama_cpp.llama_model_n_embd(llama_cpp.llama_get_model(context))
        found = [llama_cpp.llama_get_embeddings_ith(context, i) for i in range(len(ids))]
        return np.array([np.ctypeslib.as_array(row, (width,)).copy() for row in found])


def quantised(path, out, kind):
    """The file with weights of another type, one of llama.cpp's file types, by its own rules for each tensor."""
    llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}"), 1
    how.allow_requantize = True
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), ctypes.byref(how)) == 0
    return out


def _tokens(vocab, text):
    data, found = text.encode(), (ctypes.c_int32 * MAX_TOKENS)()
    return list(found[: llama_cpp.llama_tokenize(vocab, data, len(data), found, MAX_TOKENS, True, True)])


@contextmanager
def _opened(path, **others):
    """The vocabulary, a context with `others` as options, and a function from a token to the logits behind it."""
    llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, f"llama.cpp does not open {path}"
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = MAX_TOKENS
    options.n_threads = options.n_threads_batch = 1
    options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
    for name, value in others.items():
        setattr(options, name, value)
    context = llama_cpp.llama_init_from_model(model, options)
    vocab = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocab)

    def step(token):
        batch = llama_cpp.llama_batch_get_one((ctypes.c_int32 * 1)(token), 1)
        assert llama_cpp.llama_decode(context, batch) == 0
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (size,)).copy()

    try:
        yield vocab, context, step
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)
