"""What activations are rounded to: as asked, or by default where this CPU gains by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.system.commands import refused, run
from tests.system.tiny import write_expert

from coterie.api import Coterie, Options
from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.models.model import AUTO, FLOAT32


def test_they_are_rounded_where_weights_meet_them_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    def refuses(of: Path, to: str, *words: str) -> None:
        refused(run("run", of, "--expert", "ada", "--activations", to, "hi"), "--activations", *words)

    refuses(folder, "int3", "int3", "auto, float32, int16, int8, bf16")
    refuses(folder, "int8", "no expert of", "packed", "quantize")
    write_expert(tmp_path / "wide" / "ada", 0, DType.F32)
    refuses(tmp_path / "wide", "bf16", "no expert of wide has bfloat16 weights", "stored so, or leave the option out")
    for to in ("auto", "float32", "int16", "bf16"):
        answer = run("run", folder, "--expert", "ada", "--activations", to, "--max-tokens", "3", "hi")
        assert answer.exit_code == 0, answer.output


@pytest.mark.parametrize(("multiplies", "word"), [(True, "bf16"), (False, "float32")])
def test_by_default_it_is_bfloat16_where_the_cpu_multiplies_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool, word: str
) -> None:
    monkeypatch.setattr(kernels, "BF16_PRODUCTS", multiplies)

    def said(*how: str) -> str:
        return str(json.loads(run("check", folder, "--json", *how).stdout)["experts"]["ada"]["activations"])

    assert (said(), said("--device", "synthetic:toy")) == (word, "float32")
    assert ("activations of ada" in run("check", folder).stdout) == multiplies


def test_an_expert_that_is_added_is_as_those_that_were_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BF16_PRODUCTS", True)
    shutil.copytree(folder / "ada", tmp_path / "ada")
    for asked, word in ((AUTO, "bf16"), (FLOAT32, "float32")):
        with Coterie.open(tmp_path, Options(activations=asked)) as coterie:
            shutil.copytree(folder / "ada", tmp_path / "zoe")
            assert coterie.rescan().added == ("zoe",)
            assert {model.activations for model in coterie.models.values()} == {word}
            assert len({model.key for model in coterie.models.values()}) == 1
        shutil.rmtree(tmp_path / "zoe")
