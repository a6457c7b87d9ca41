"""Merging into a base where embedding and head are one matrix: what becomes of the one that an adapter leaves."""

import pytest
import torch
from safetensors.torch import load_file
from tests.model import adapters, tiny
from tests.model.test_merge import EMBED, HEAD, TOLERANCE, logits_of
from tests.model.theirs import prompt_of, relative_error

from coterie.checkpoint.folder import SINGLE
from coterie.models.fine_tunes.merge import merge_folder

ONE_OR_BOTH = [[EMBED], [HEAD], [EMBED, HEAD]]


@pytest.mark.parametrize("grown", [0, 6])
@pytest.mark.parametrize("modules", ONE_OR_BOTH)
def test_a_whole_matrix_beside_factors_stays_the_other_one_too(modules, grown, folder_of, tmp_path):
    """PEFT saves it beside the factors of every module that has some, and nowhere else."""
    base = folder_of("llama-tied")
    model = tiny.load(base)
    model.resize_token_embeddings(model.config.vocab_size + grown)
    whole = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(7)) / 2
    model.lm_head.weight.data.copy_(whole)  # the embedding's, too
    parts = adapters.parts(model, modules)
    adapter = adapters.write(tmp_path / "adapter", parts, {f"{m}.base_layer.weight": whole for m in modules})
    made = merge_folder(base, adapter, tmp_path / "out")
    assert (made.untied, made.vocab_size) == (True, len(whole))
    prompt = [*prompt_of(len(whole)), len(whole) - 1]
    wanted = logits_of(adapters.hook(model, parts, lambda _: 2.0), prompt)
    assert relative_error(logits_of(tiny.load(made.folder), prompt), wanted) <= TOLERANCE


@pytest.mark.parametrize("modules", ONE_OR_BOTH)
def test_copies_that_were_trained_by_themselves_leave_the_other_one(modules, folder_of, tmp_path):
    """Of modules_to_save: PEFT trains a copy of each."""
    base = folder_of("llama-tied")
    before = load_file(base / SINGLE)[f"{EMBED}.weight"]
    wholes = {f"{m}.weight": before + i for i, m in enumerate(modules, start=1)}
    made = merge_folder(base, adapters.write(tmp_path / "adapter", {}, wholes), tmp_path / "out")
    after = load_file(made.folder / SINGLE)
    assert made.untied
    for name in (f"{EMBED}.weight", f"{HEAD}.weight"):
        assert torch.equal(after[name], wholes.get(name, before))


def test_one_matrix_that_was_trained_as_one_and_saved_twice(folder_of, tmp_path):
    """Of modules_to_save with ensure_weight_tying: PEFT 0.21 saves it under both names, and it stays one."""
    base = folder_of("llama-tied")
    before = load_file(base / SINGLE)[f"{EMBED}.weight"]
    wholes = {f"{m}.weight": before + 1 for m in (EMBED, HEAD)}
    adapter = adapters.write(tmp_path / "adapter", {}, wholes, ensure_weight_tying=True)
    made = merge_folder(base, adapter, tmp_path / "out")
    assert not made.untied
    after = load_file(made.folder / SINGLE)
    assert torch.equal(after[f"{EMBED}.weight"], before + 1)
    assert f"{HEAD}.weight" not in after
