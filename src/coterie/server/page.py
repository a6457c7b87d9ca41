"""GET /: the web page for asking and monitoring, a single file without external resources.

Knows nothing about what it shows: the page calls the other endpoints. Source of the policy: W3C, "Content Security
Policy Level 3".
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_INLINE = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def routes() -> list[Route]:
    """The endpoint."""
    html = (files(__package__) / "page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    async def page(_: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    return [Route("/", page, methods=["GET"])]


def policy(html: str) -> str:
    """The page's content security policy: only its own inline code and styles, and requests only to this server."""
    allowed: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
    sources = [f"{kind}-src {' '.join(digests)}" for kind, digests in allowed.items()]
    ends = ["connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    return "; ".join(["default-src 'none'", *sources, *ends])
