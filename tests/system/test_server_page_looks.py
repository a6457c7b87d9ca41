"""The web page as it looks: what can be held without a browser of what one showed.

Sources: W3C, "Web Content Accessibility Guidelines 2.2" (1.4.3 contrast, 1.4.4 text size, 4.1.2 names); CSS Color 4.
"""

from __future__ import annotations

import colorsys
import re
from importlib.resources import files

import pytest

HTML = (files("coterie.server") / "page.html").read_text(encoding="utf-8")
STYLE = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)[0]
MARKUP = re.sub(r"<(style|script)>.*?</\1>", "", HTML, flags=re.DOTALL)
READABLE = 4.5  # between text and what is behind it
SEEN = 3.0  # between a mark that says something and what is behind it

Colour = tuple[float, float, float]


def schemes() -> dict[str, dict[str, str]]:
    """The variables of the light and of the dark page."""
    light, dark = [
        dict(re.findall(r"--([a-z-]+): ([^;]+);", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    ]
    return {"light": light, "dark": {**light, **dark}}


def rgb(text: str) -> Colour:
    red, green, blue = (int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Colour, other: Colour) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_it_is() -> None:
    assert contrast(rgb("#000000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#ffffff")) == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    of = schemes()[scheme]
    behind = ("panel", "ground", "chosen")
    pairs = [("ink", ground) for ground in behind] + [("quiet", ground) for ground in behind] + [("bad", "panel")]
    for ink, ground in [*pairs, ("bad", "ground"), ("on-accent", "accent")]:
        assert contrast(rgb(of[ink]), rgb(of[ground])) >= READABLE, (ink, ground)
    for mark in ("accent", "well", "bad"):
        assert contrast(rgb(of[mark]), rgb(of["ground"])) >= SEEN, mark
    saturation, lightness = (int(share) / 100 for share in re.findall(r"(\d+)%", of["fill"]))
    for hue in range(360):  # the name of an expert in its colour
        fill = colorsys.hls_to_rgb(hue / 360, lightness, saturation)
        assert contrast(rgb(of["ink"]), fill) >= READABLE, hue


def test_text_is_as_large_as_its_reader_wants() -> None:
    assert not re.search(r"font[^;}]*\d(px|pt)", STYLE)
    viewport = re.findall(r'name="viewport" content="([^"]*)"', HTML)
    assert viewport == ["width=device-width, initial-scale=1"]  # and so may be made larger


def test_who_hears_it_is_told_what_each_part_is() -> None:
    assert '<html lang="en">' in HTML
    for tag in ("input", "select", "textarea"):
        for found in re.findall(rf"<label>[^<]*<{tag}\b[^>]*>|<{tag}\b[^>]*>", MARKUP):
            assert found.startswith("<label>") or 'aria-label="' in found, found
    for text in re.findall(r"<button[^>]*>([^<]*)<", MARKUP):
        assert text.strip()
    for scrolled in ("talk", "switches"):  # by keys too
        assert re.search(rf'<ol id="{scrolled}"[^>]* tabindex="0" aria-label="', MARKUP)


def test_who_wants_no_motion_has_none() -> None:
    moving = re.findall(r"([^{}]+)\{[^{}]*animation: (?!none)", STYLE)
    still = re.findall(r"prefers-reduced-motion: reduce\) \{ ([^{]+)\{ animation: none", STYLE)
    assert [rule.strip() for rule in moving] == [rule.strip() for rule in still]


def test_each_line_is_written_from_its_own_side() -> None:
    assert "unicode-bidi: plaintext" in re.findall(r"\.said \{([^}]*)\}", STYLE)[0]
    assert re.search(r'<textarea id="prompt" dir="auto"', MARKUP)
    assert not re.search(r"(margin|padding|border)-(left|right)|text-align: (left|right)", STYLE)


def test_it_stays_of_a_size_that_can_be_read() -> None:
    assert len(HTML.encode()) < 32 * 1024
