"""Who is gone from a folder that is served is forgotten, once nobody waits for it or needs what it shares."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from tests.system.test_rescan import PROMPT, alone, asked
from tests.system.tiny import write_adapter_of, write_expert

from coterie.api import Coterie, Query


def test_who_is_gone_is_known_no_more_at_the_next_look(office: Path) -> None:
    """However many names come and go, nothing is kept of those; the last of an architecture lends its program on."""
    write_expert(office / "eve", 4, intermediate_size=40)
    with Coterie.open(office) as coterie:
        asked(coterie, "eve")
        program = coterie.parts.served["eve"].exe
        for number in range(6):
            name = f"cyd-{number}"
            write_expert(office / name, number)
            assert coterie.rescan().added == (name,)
            assert asked(coterie, name)
            shutil.rmtree(office / name)
            if number == 2:
                shutil.rmtree(office / "eve")
            assert name in coterie.rescan().removed
        coterie.rescan()
        known = {"ada", "bob", "eve"}  # the only one of its architecture
        assert set(coterie.models) == set(coterie.texts) == set(coterie.parts.served) == known
        metrics = coterie.parts.engine.metrics
        for counts in (*metrics.by_expert.values(), metrics.last_end_s):
            assert set(counts) <= known
        assert metrics.finished.total() == 7
        write_expert(office / "zoe", 5, intermediate_size=40)
        assert coterie.rescan().added == ("zoe",)
        assert coterie.parts.served["zoe"].exe is program
        assert set(coterie.models) == {"ada", "bob", "eve", "zoe"}  # at the look before it was the last
        coterie.rescan()
        assert set(coterie.models) == {"ada", "bob", "zoe"}
        assert asked(coterie, "zoe") == alone(office / "zoe")


def test_who_is_gone_and_still_answers_stays_known_until_then(office: Path) -> None:
    with Coterie.open(office) as coterie:
        asked(coterie, "bob")
        request_id = coterie.submit(replace(Query.text(PROMPT, "bob"), max_tokens=20))
        coterie.step()
        shutil.rmtree(office / "bob")
        coterie.rescan()
        coterie.rescan()
        assert "bob" in coterie.models
        chunks = []
        while not any(chunk.last for chunk in chunks):
            chunks += coterie.step()
        assert {(chunk.request_id, chunk.error) for chunk in chunks} == {(request_id, None)}
        coterie.rescan()
        assert set(coterie.models) == {"ada"}
        coterie.parts.all_weights.check_integrity()


def test_an_adapter_comes_back_to_the_base_of_one_that_is_gone(office: Path) -> None:
    write_adapter_of(office / "ada", office / "tuned", ("q_proj",), 1)
    with Coterie.open(office) as coterie:
        shutil.rmtree(office / "tuned")
        assert coterie.rescan().removed == ("tuned",)
        coterie.rescan()
        write_adapter_of(office / "ada", office / "tuned-2", ("q_proj",), 2)
        assert coterie.rescan().added == ("tuned-2",)
        coterie.rescan()
        assert set(coterie.models) == {"ada", "bob", "tuned-2"}
