"""Merged experts: what is written computes what base and adapter compute side by side, and all else is the base's."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.model import adapters, tiny
from tests.model.runner import prompt_logits
from tests.model.theirs import prompt_of, relative_error

from coterie.checkpoint.folder import SINGLE
from coterie.checkpoint.safetensors import read_header
from coterie.core.dtypes import DType
from coterie.models.fine_tunes.adapter import ADAPTER_WEIGHTS
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

TOLERANCE, OURS = 1e-5, 1e-4  # relative to the largest logit; of merging, and of our kernels beside transformers'
EMBED, HEAD = "model.embed_tokens", "lm_head"
ROWS = ["llama", "llama-biases", "qwen2", "qwen3-bias", "olmo2", "phi3", "phi3-partial", "granite-biases", "gemma2"]


def logits_of(model, prompt):
    """In float64 where the model is in float32, so that what differs is what is stored and not how it is added up."""
    model = model.double() if model.dtype == torch.float32 else model
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].double().numpy()


def check(base, parts, scale_of, made, make_backend=None):
    """The merged folder, read by transformers and by us, against hooks on the base."""
    prompt = prompt_of(open_model(base).config.vocab_size)
    wanted = logits_of(adapters.hook(tiny.load(base), parts, scale_of), prompt)
    assert relative_error(logits_of(tiny.load(base), prompt), wanted) > 0.05
    assert relative_error(logits_of(tiny.load(made), prompt), wanted) <= TOLERANCE
    if make_backend:
        assert relative_error(prompt_logits(make_backend("cpu", open_model(made)), prompt), wanted) <= OURS


def tensors_of(folder):
    """Every tensor of a folder's files: its type, shape and bytes."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, info in read_header(file).items():
            data = file.read_bytes()[info.offset : info.offset + info.size_bytes]
            found[name] = (info.dtype, info.shape, data)
    return found


@pytest.mark.parametrize("row", ROWS)
def test_every_linear_of_a_family(row, folder_of, tmp_path, make_backend):
    base = folder_of(row)
    parts = adapters.parts(tiny.load(base))
    adapter = adapters.write(tmp_path / "adapter", parts, target_modules="all-linear")
    made = merge_folder(base, adapter, tmp_path / "out")
    check(base, parts, lambda _: 2.0, made.folder, make_backend)
    assert open_model(made.folder).key == open_model(base).key
    assert sum(kind.num_tensors for kind in made.kinds) == len(parts)


PATTERNS = {
    "rank_pattern": {"k_proj": 3, "layers.1.mlp.up_proj": 1, "^model.layers.2.self_attn.q_proj": 7},
    "alpha_pattern": {r"model\.layers\.[01]\.self_attn\.(q|k)_proj": 5, "down_proj": 0.5},
}


def patterned_rank(module):
    if module.endswith("k_proj"):
        return 3
    return {"model.layers.1.mlp.up_proj": 1, "model.layers.2.self_attn.q_proj": 7}.get(module, 4)


def patterned_scale(module):
    early = "layers.2" not in module and module.endswith(("q_proj", "k_proj"))
    return (5 if early else 0.5 if module.endswith("down_proj") else 8) / patterned_rank(module)


@pytest.mark.parametrize(
    ("rank", "changes", "scale"),
    [
        (1, {"r": 1, "lora_alpha": 2.5}, 2.5),
        (7, {"r": 7, "lora_alpha": 4}, 4 / 7),
        (60, {"r": 60, "lora_alpha": 20}, 1 / 3),
        (5, {"r": 5, "use_rslora": True}, 8 / 5**0.5),
        (4, {"fan_in_fan_out": True}, 2.0),
        (4, {"target_modules": r".*\.(self_attn|mlp)\.[a-z]+_proj"}, 2.0),
        (4, {"target_modules": ["mlp.up_proj", *adapters.ALL]}, 2.0),
        (4, {"target_modules": None, "alpha_pattern": None, "init_lora_weights": "Gaussian"}, 2.0),
        (8, {"r": None, "lora_alpha": None, "init_lora_weights": "eva"}, 1.0),
        (4, {"rank_pattern": {"proj": 5}, "alpha_pattern": {"_proj": 100}, "init_lora_weights": "orthogonal"}, 2.0),
        (patterned_rank, PATTERNS, patterned_scale),
    ],
)
def test_ranks_and_scales(rank, changes, scale, folder_of, tmp_path):
    base = folder_of("llama")
    parts = adapters.parts(tiny.load(base), rank=rank)
    adapter = adapters.write(tmp_path / "adapter", parts, **changes)
    made = merge_folder(base, adapter, tmp_path / "out")
    check(base, parts, scale if callable(scale) else lambda _: scale, made.folder)


@pytest.mark.parametrize("row", ["llama", "llama-biases", "phi3"])
def test_dora_keeps_its_lengths(row, folder_of, tmp_path):
    base = folder_of(row)
    parts = adapters.parts(tiny.load(base), rank=3, dora=True)
    adapter = adapters.write(tmp_path / "adapter", parts, r=3, use_dora=True)
    made = merge_folder(base, adapter, tmp_path / "out")
    check(base, parts, lambda _: 8 / 3, made.folder)
    after = load_file(made.folder / SINGLE)
    for module, part in parts.items():
        torch.testing.assert_close(after[f"{module}.weight"].norm(dim=1), part.magnitude)


@pytest.mark.parametrize("names", [[EMBED], [HEAD], [EMBED, HEAD, "q_proj"]])
@pytest.mark.parametrize("row", ["llama", "llama-tied"])
def test_embedding_and_head(names, row, folder_of, tmp_path, make_backend):
    """Where both are one matrix, an adapter of one leaves the other as it was: then they are two."""
    base = folder_of(row)
    parts = adapters.parts(tiny.load(base), names)
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts), tmp_path / "out")
    check(base, parts, lambda _: 2.0, made.folder, make_backend)
    assert made.untied == (row == "llama-tied")
    assert not open_model(made.folder).config.tied_embeddings


def test_one_matrix_stays_one_where_neither_is_changed(folder_of, tmp_path):
    base = folder_of("llama-tied")
    parts = adapters.parts(tiny.load(base))
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts), tmp_path / "out")
    assert not made.untied
    assert f"{HEAD}.weight" not in tensors_of(made.folder)
    assert open_model(made.folder).config.tied_embeddings


def test_whole_tensors_take_the_place_of_the_bases(folder_of, tmp_path):
    """Of modules_to_save, and biases, under both names that PEFT has for them."""
    base = folder_of("llama-biases")
    model = tiny.load(base)
    names = [f"{EMBED}.weight", f"{HEAD}.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.bias"]
    hidden = "model.layers.0.self_attn.q_proj{}.bias"
    generator = torch.Generator().manual_seed(3)
    wholes = {n: torch.randn(model.get_parameter(n).shape, generator=generator) for n in [*names, hidden.format("")]}
    parts = adapters.parts(model, ["q_proj", "up_proj"])
    names = {hidden.format(""): hidden.format(".base_layer"), f"{HEAD}.weight": f"{HEAD}.modules_to_save.weight"}
    stored = {names.get(name, name): whole for name, whole in wholes.items()}
    adapter = adapters.write(tmp_path / "adapter", parts, stored, bias="all", modules_to_save=[EMBED, HEAD, "norm"])
    made = merge_folder(base, adapter, tmp_path / "out")
    after = load_file(made.folder / SINGLE)
    for name, whole in wholes.items():
        torch.testing.assert_close(after[name], whole, rtol=0, atol=0)
        model.get_parameter(name).data = whole
    prompt = prompt_of(257)
    wanted = logits_of(adapters.hook(model, parts, lambda _: 2.0), prompt)
    assert relative_error(logits_of(tiny.load(made.folder), prompt), wanted) <= TOLERANCE


@pytest.mark.parametrize("row", ["llama", "llama-tied"])
def test_a_vocabulary_that_grew(row, folder_of, tmp_path):
    """Its new rows are in the adapter: an embedding under its base's name beside its factors, and the head."""
    base = folder_of(row)
    model = tiny.load(base)
    size = model.config.vocab_size + 6
    model.resize_token_embeddings(size)
    tiny.randomise(model, seed=5)
    parts = adapters.parts(model, ["v_proj"] if row == "llama-tied" else [EMBED, "v_proj"])
    before = load_file(base / SINGLE)
    for name, parameter in model.named_parameters():
        if name in before and "embed" not in name and "lm_head" not in name:
            parameter.data = before[name]
    wholes = {f"{HEAD}.weight": model.lm_head.weight}
    wholes[f"{EMBED}.weight" if row == "llama-tied" else f"{EMBED}.base_layer.weight"] = model.model.embed_tokens.weight
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts, wholes), tmp_path / "out")
    assert (made.vocab_size, made.untied) == (size, False)
    assert open_model(made.folder).config.vocab_size == size
    prompt = [*prompt_of(size), size - 1, size - 2]
    wanted = logits_of(adapters.hook(model, parts, lambda _: 2.0), prompt)
    assert relative_error(logits_of(tiny.load(made.folder), prompt), wanted) <= TOLERANCE


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("dora", [False, True])
def test_rounded_once_to_the_bases_type(dtype, dora, folder_of, tmp_path):
    """Every stored weight is a nearest one to the sum in float64; the adapter may have another type than the base."""
    base = folder_of("llama", dtype=dtype)
    parts = adapters.parts(tiny.load(base), dora=dora)
    adapter = adapters.write(tmp_path / "adapter", parts, dtype=tiny.DTYPES["bf16"], use_dora=dora)
    made = merge_folder(base, adapter, tmp_path / "out")
    files = (base / SINGLE, made.folder / SINGLE, adapter / ADAPTER_WEIGHTS)
    before, after, low = (load_file(file) for file in files)
    for module in parts:
        a, b = (low[f"{adapters.PREFIX}{module}.lora_{x}.weight"].double() for x in "AB")
        exact = before[f"{module}.weight"].double() + 2.0 * b @ a
        if dora:
            magnitude = low[f"{adapters.PREFIX}{module}.lora_magnitude_vector"].double()
            exact *= (magnitude / exact.norm(dim=1))[:, None]
        found = after[f"{module}.weight"]
        assert found.dtype == tiny.DTYPES[dtype]
        # Half a step of the type, and what float32 itself may be off.
        step = torch.exp2(torch.floor(torch.log2(exact.abs()))) * (2.0**-7 if dtype == "bf16" else 2.0**-10)
        step = step.clamp(min=2.0**-24 if dtype == "fp16" else 0)
        assert ((found.double() - exact).abs() <= step / 2 + 2.0**-20 * exact.abs().max()).all()


def test_rounded_logits_are_within_the_types_own_error(folder_of, tmp_path):
    """A bf16 base with its adapter: merging loses no more than bf16 arithmetic with both side by side."""
    base = folder_of("llama", dtype="bf16")
    parts = adapters.parts(tiny.load(base))
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts), tmp_path / "out")
    prompt = prompt_of(257)
    truth = logits_of(adapters.hook(tiny.load(base), parts, lambda _: 2.0), prompt)
    rounded = {m: adapters.Part(p.a.bfloat16(), p.b.bfloat16()) for m, p in parts.items()}
    own = logits_of(adapters.hook(tiny.load(base, "bf16"), rounded, lambda _: 2.0), prompt)
    assert 0 < relative_error(logits_of(tiny.load(made.folder), prompt), truth) <= relative_error(own, truth)


def test_the_reported_changes_are_those_of_the_file(folder_of, tmp_path):
    base = folder_of("llama", dtype="bf16")
    parts = adapters.parts(tiny.load(base), ["layers.1.self_attn.q_proj", "layers.2.self_attn.q_proj", "up_proj"])
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts), tmp_path / "out")
    before, after = load_file(base / SINGLE), load_file(made.folder / SINGLE)
    counts = {kind.kind: (kind.num_tensors, kind.num_there) for kind in made.kinds}
    assert counts == {"self_attn.q_proj": (2, 3), "mlp.up_proj": (3, 3)}
    for row in made.kinds:
        modules = [module for module in parts if module.endswith(row.kind)]
        old, new = (
            torch.cat([stored[f"{m}.weight"].double().flatten() for m in modules]) for stored in (before, after)
        )
        exact = old + torch.cat([(2.0 * parts[m].b.double() @ parts[m].a.double()).flatten() for m in modules])
        assert row.change == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
        assert row.rounding == pytest.approx(float((new - exact).norm() / (new - old).norm()), rel=1e-3)
        assert 0 < row.rounding < 0.01
        assert row.num_weights == len(new)


def test_an_adapter_that_adds_nothing_changes_nothing(folder_of, tmp_path):
    base = folder_of("llama", dtype="bf16")
    parts = {m: adapters.Part(p.a, 0 * p.b) for m, p in adapters.parts(tiny.load(base)).items()}
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts), tmp_path / "out")
    assert tensors_of(made.folder) == tensors_of(base)
    assert {(kind.change, kind.rounding) for kind in made.kinds} == {(0.0, 0.0)}


def test_a_change_that_rounding_loses_is_told(folder_of, tmp_path):
    base = folder_of("llama", dtype="bf16")
    parts = {m: adapters.Part(p.a, 1e-6 * p.b) for m, p in adapters.parts(tiny.load(base), ["up_proj"]).items()}
    made = merge_folder(base, adapters.write(tmp_path / "adapter", parts), tmp_path / "out")
    before, after = load_file(base / SINGLE), load_file(made.folder / SINGLE)
    old, new = (torch.cat([x[f"{m}.weight"].double().flatten() for m in parts]) for x in (before, after))
    exact = old + torch.cat([(2.0 * p.b.double() @ p.a.double()).flatten() for p in parts.values()])
    (row,) = made.kinds
    assert row.change == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
    assert row.change < 0.5 * float((exact - old).norm() / old.norm())


def test_a_merged_expert_is_quantised_as_any(folder_of, tmp_path):
    adapter = adapters.write(tmp_path / "adapter", adapters.parts(tiny.make("llama")))
    made = merge_folder(folder_of("llama"), adapter, tmp_path / "out")
    packed = quantize_folder(made.folder, tmp_path / "packed", Packing(DType.Q8, DType.Q8))
    prompt = prompt_of(257)
    assert np.isfinite(logits_of(tiny.load(made.folder), prompt)).all()
    assert open_model(packed.folder).config == open_model(made.folder).config
