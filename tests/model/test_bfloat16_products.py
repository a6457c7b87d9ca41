"""Products of bfloat16: what meets bfloat16 weights, or keys and values kept so beside them, is rounded in every
family; nothing else is.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model import differences, tiny
from tests.model.runner import Stepper, prompt_logits
from tests.model.test_adapted import adapted
from tests.model.test_encoders import make as make_encoder
from tests.model.test_encoders import rows_of
from tests.model.theirs import as_met, prompt_of, torch_logits
from tests.model.ways import check_bits, check_in_turns

from coterie.api.assemble import rounded_for
from coterie.core.dtypes import DType
from coterie.graph.ops import BF16, INT8, INT8_OR_FINER, ROUNDING
from coterie.graph.verify import verify
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import ISAS
from coterie.models.fine_tunes.adapted import open_adapted
from coterie.models.fine_tunes.delta import open_delta
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.model import AUTO, FLOAT32, open_model, with_activations
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

SAME = 1e-3  # of what rounding moves a token: of most, but of one that has a number near the middle between two
# One of each kind of product: odd sizes, biases, one matrix for three, gelu, branches, latent rows, nets, own inputs.
ROWS = [
    *(
        "llama-head6",
        "llama-biases",
        "llama-tied",
        "qwen3",
        "phi3-partial",
        "gemma2",
        "starcoder2",
        "cohere",
        "apertus",
    ),
    *("qwen3-moe-mixed", "gpt-oss", "gemma4-moe", "deepseek-v2", "qwen3.5", "lfm2", "granite4-h", "mamba2", "gemma4"),
]
STEPPED = ["llama-head6", "phi3-partial", "ernie-moe", "deepseek-v2", "qwen3.5-moe", "nemotron-h"]


def halved(folder, out, wide=()):
    """The expert with matrices of bfloat16, but for those whose names have one of `wide`; norms and biases stay."""
    out.mkdir()
    for file in folder.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and not any(part in name for part in wide):
            tensors[name] = tensor.bfloat16()
    save_file(tensors, out / "model.safetensors")
    return out


def logits_of(make_backend, plain, rounded):
    """The reference as it is, the reference that rounds, and a CPU that does; packed weights meet 16 bits in all."""
    runs = {"plain": ("reference", as_met(plain)), "reference": ("reference", as_met(rounded)), "cpu": ("cpu", rounded)}
    prompt = prompt_of(plain.config.vocab_size)
    return {name: prompt_logits(make_backend(backend, model), prompt) for name, (backend, model) in runs.items()}


def check_rounds_alike(found, each=False):
    """That a CPU is nearer to the reference that rounds than rounding itself moves it; `each`: for most tokens.

    A token whose next two branches weigh nearly the same takes the other one in some arithmetic.
    """
    lost, apart = (
        np.linalg.norm(found[name] - found["reference"], axis=-1 if each else None) for name in ("plain", "cpu")
    )
    assert np.median(lost) > 0
    assert np.median(apart) <= 0.6 * np.median(lost)


@pytest.mark.parametrize("row", ROWS)
def test_a_cpu_rounds_what_the_reference_does(row, folder_of, make_backend):
    """Keys and values are of bfloat16 too here, as in files, and one near the middle is kept as either."""
    plain = open_model(tiny.expert(folder_of(row, dtype="bf16")))
    rounded = with_activations(plain, BF16)
    found = logits_of(make_backend, plain, rounded)
    check_rounds_alike(found, each=row in tiny.BRANCHED)


@pytest.mark.parametrize(
    ("row", "wide"),
    [
        *((row, ("k_proj",)) for row in ("llama-head6", "llama-biases", "qwen3", "olmo2-bias", "starcoder2-full")),
        ("llama-head6", ("k_proj", "up_proj")),
        ("llama-biases", ("k_proj", "q_proj", "gate_proj", "o_proj")),
    ],
)
def test_it_is_what_transformers_computes_where_each_linear_rounds(row, wide, folder_of, tmp_path, make_backend):
    """Float32 keys and values, of a float32 projection, so that nothing else is rounded; what is `wide` rounds nothing,
    beside others of its kernel that do. Texts are short: where a number near the middle goes the other way, all tokens
    behind it do too.
    """
    folder = halved(folder_of(row), tmp_path / "halved", wide)
    model, prompt = with_activations(open_model(folder), BF16), prompt_of(257)
    texts = [prompt[at : at + 4] for at in range(0, len(prompt), 4)]
    theirs = tiny.load(folder)
    plain = np.concatenate([torch_logits(theirs, text) for text in texts])
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith(wide):
            module.register_forward_pre_hook(lambda _, args: (args[0].bfloat16().float(),))
    wanted = np.concatenate([torch_logits(theirs, text) for text in texts])
    for name in ("reference", "cpu"):
        backend = make_backend(name, model)
        found = np.concatenate([prompt_logits(backend, text) for text in texts])
        apart, lost = (np.linalg.norm(values - wanted, axis=-1) for values in (found, plain))
        assert np.median(apart) <= SAME * np.median(lost)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("row", STEPPED)
def test_one_answer_however_it_is_stepped(row, isa, folder_of, make_backend):
    """A prompt, its pieces, one token, a batch: the same bits. Fused or not and by any number of threads too."""
    model = with_activations(open_model(tiny.expert(folder_of(row, dtype="bf16"))), BF16)
    stepper = Stepper(make_backend("cpu", model, isa=isa))
    check_bits(stepper)
    prompt = prompt_of(257)
    whole = stepper.feed((stepper.sequence(), prompt))
    for threads, rule_set in ((1, "cache"), (3, "none")):
        backend = make_backend("cpu", model, isa=isa, threads=threads, rule_set=rule_set)
        np.testing.assert_array_equal(prompt_logits(backend, prompt), whole)


def roundings(model):
    """What the products of each weight round to."""
    verify(model.graph)
    return {op.inputs[1 if op.kind == "linear" else -1]: op.attrs.get(ROUNDING) for op in model.graph.ops if op.inputs}


def test_it_is_part_of_the_key_and_touches_bfloat16_weights_alone(folder_of, tmp_path):
    folder = halved(folder_of("llama"), tmp_path / "halved", ("q_proj", "embed"))
    model = open_model(folder)
    rounded = with_activations(model, BF16)
    assert rounded.key != model.key
    assert with_activations(model, INT8).key == model.key
    for weight in model.graph.weights:
        meets = weight.dtype is DType.BF16
        assert roundings(rounded)[weight.name] == (BF16 if meets else None)
        assert meets == (len(weight.shape) == 2 and "q_proj" not in weight.name and "embed" not in weight.name)
    for dtype in ("fp32", "fp16"):
        other = open_model(folder_of("llama", dtype=dtype))
        assert with_activations(other, BF16).key == other.key


def test_packed_weights_beside_them_meet_16_bits_as_ever(folder_of, tmp_path, make_backend):
    """Layers of int4, and a table of bfloat16 that is the head too."""
    quantize_folder(folder_of("llama-tied", dtype="bf16"), tmp_path / "packed", Packing(DType.Q4, None))
    packed = open_model(tmp_path / "packed")
    rounded = with_activations(packed, BF16)
    assert [name for name, to in roundings(rounded).items() if to] == ["model.embed_tokens.weight"]
    found = logits_of(make_backend, packed, rounded)
    # The head alone rounds, so what it loses is little beside a key or value that is kept as its other neighbour, from
    # which all later tokens are as far off: the nearest token, mostly the first, tells.
    lost, apart = (np.linalg.norm(found[name] - found["reference"], axis=-1) for name in ("plain", "cpu"))
    assert np.min(apart / lost) <= 1e-3


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_an_adapter_rounds_beside_its_base(dtype, folder_of, tmp_path, make_backend):
    """Factors of bfloat16 meet it as well, those of float32 do not."""
    _, _, folder = adapted("llama", folder_of, tmp_path, dtype=dtype)
    base = open_model(halved(folder_of("llama"), tmp_path / "halved", ("k_proj",)))
    plain = open_adapted(base, folder)
    rounded = with_activations(plain, BF16)
    assert rounded.base.key == with_activations(base, BF16).key
    of_factors = {to for name, to in roundings(rounded).items() if "lora" in name}
    assert of_factors == {BF16 if dtype == "bf16" else None}
    check_rounds_alike(logits_of(make_backend, plain, rounded))
    others = []
    for seed in (1, 2):
        _, _, folder = adapted("llama", folder_of, tmp_path / str(seed), seed=seed, dtype=dtype)
        others.append(with_activations(open_adapted(base, folder), BF16))
    check_in_turns(rounded.base, others, make_backend)


def test_a_delta_of_few_bits_meets_8_and_its_base_bfloat16(folder_of, tmp_path, make_backend):
    base = folder_of("qwen3", dtype="bf16")
    write_delta(base, differences.tune(base, tmp_path / "tuned"), tmp_path / "delta", Packing(DType.Q4, DType.Q8))
    plain = open_delta(open_model(base), tmp_path / "delta")
    rounded = with_activations(plain, BF16)
    said = {rounded.graph.values[name].dtype: to for name, to in roundings(rounded).items() if to}
    assert said == {DType.BF16: BF16, DType.Q4: INT8_OR_FINER}  # of the head's int8 nothing
    check_rounds_alike(logits_of(make_backend, plain, rounded))


@pytest.mark.parametrize("row", ["bert", "gte-no-types", "modernbert-biases", "gemma3-both-ways"])
def test_an_encoder_rounds_as_the_reference_does(row, tmp_path, make_backend):
    make_encoder(row).bfloat16().save_pretrained(tmp_path)
    plain, texts, found = open_model(tmp_path), [[7, 3, 250, 9, 9], [17], list(range(2, 66))], {}
    rounded = with_activations(plain, BF16)
    for name, backend, model in (
        ("plain", "reference", plain),
        ("reference", "reference", rounded),
        ("cpu", "cpu", rounded),
    ):
        stepper = Stepper(make_backend(backend, model))
        found[name] = rows_of(stepper.backend, stepper.rows(*[(stepper.sequence(), text) for text in texts]))
        alone = rows_of(stepper.backend, stepper.rows((stepper.sequence(), texts[2])))
        if backend == "cpu":
            np.testing.assert_array_equal(alone, found[name][6:])
    check_rounds_alike(found)


def test_by_default_what_is_dense_meets_it_where_a_cpu_multiplies_it(folder_of, tmp_path, monkeypatch):
    def chosen(folder, device="cpu"):
        return rounded_for(open_model(folder), AUTO, device).activations

    dense = {row: folder_of(row, dtype="bf16") for row in ("llama", "gemma4", "minicpm3")}
    others = [
        folder_of(row, dtype="bf16") for row in ("qwen3-moe", "gemma4-moe", "qwen3.5", "granite4-h", "mamba2", "lfm2")
    ]
    make_encoder("gemma3-both-ways").bfloat16().save_pretrained(tmp_path / "encoder")
    dense["encoder"] = tmp_path / "encoder"
    others += [folder_of("llama"), folder_of("llama", dtype="fp16")]
    monkeypatch.setattr(kernels, "BF16_PRODUCTS", True)
    assert {row: chosen(folder) for row, folder in dense.items()} == dict.fromkeys(dense, BF16)
    assert {chosen(folder) for folder in others} == {FLOAT32}
    devices = ("cuda", "modelled:sn40l-node", "synthetic:toy")
    assert {chosen(dense["llama"], device) for device in devices} == {FLOAT32}
    monkeypatch.setattr(kernels, "BF16_PRODUCTS", False)
    assert chosen(dense["llama"]) == FLOAT32
    assert rounded_for(open_model(dense["llama"]), BF16, "cpu").activations == BF16
