"""The page's server: on this machine alone, with a secret in the address."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import socket
import sys
import traceback
from collections import OrderedDict
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fxplain.errors import FxplainError, InputError, OutputError
from fxplain.render.pages import page
from fxplain.serve.answering import Answering, told
from fxplain.serve.handed import MOST_BYTES, MOST_LETTERS, MOST_TOKENS, asked_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from fxplain.explainer.explainer import Explainer

HOST = "127.0.0.1"
KEPT = 24
"""Pages that are kept to be looked at; older ones are forgotten."""
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Pages:
    """The last pages that were made, by number."""

    def __init__(self) -> None:
        self.kept: OrderedDict[int, str] = OrderedDict()
        self.count = 0

    def keep(self, html: str) -> int:
        """Keep a page; the oldest one goes where there are too many."""
        self.count += 1
        self.kept[self.count] = html
        while len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return self.count


def application(explainer: Explainer, token: str) -> Starlette:
    """The server of one model.

    Args:
        explainer: the model and its processor.
        token: without it in the address nothing is answered.

    Raises:
        OutputError: starlette is not installed.
    """
    web = library()
    answering, pages, busy = Answering(explainer), Pages(), asyncio.Lock()

    async def home(request: Request) -> Response:
        return web.html(home_page(explainer, answering), HEADERS)

    async def explain(request: Request) -> Response:
        try:
            form, sent = await read(request)
            asked = asked_of(form, sent)
            async with busy:
                shown = await web.in_thread(answering.answer, asked, form.get("chat") == "on")
        except FxplainError as error:
            return web.json({"error": told(error)}, 400, HEADERS)
        except Exception as error:  # a bug of ours or of the model's: the terminal has the rest
            traceback.print_exc(file=sys.stderr)
            return web.json({"error": told(error)}, 500, HEADERS)
        number = pages.keep(shown.html)
        return web.json(
            {"page": f"page/{number}", "question": shown.question, "choices": list(shown.choices)},
            200,
            HEADERS,
        )

    async def kept(request: Request) -> Response:
        html = pages.kept.get(request.path_params["number"])
        own = {"Content-Security-Policy": "sandbox allow-scripts; frame-ancestors 'self'"}
        return web.html(
            html or "this page is not kept any more: ask again", HEADERS | own, 200 if html else 404
        )

    routes = [
        (f"/{token}/", home, "GET"),
        (f"/{token}/explain", explain, "POST"),
        (f"/{token}/page/{{number:int}}", kept, "GET"),
    ]
    return web.made(routes)


async def read(request: Request) -> tuple[dict[str, str], dict[str, bytes]]:
    """Fields and files of a form, no more of them than is allowed.

    Raises:
        InputError: too much was sent, or it is no form.
    """
    size = request.headers.get("content-length", "")
    if not size.isdigit() or int(size) > MOST_BYTES:
        raise InputError(
            "too much was sent", expected=f"at most {MOST_BYTES >> 20} MB", found=f"{size or '?'} bytes"
        )
    form = await request.form(max_files=2, max_fields=12)
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    sent = {name: await value.read() for name, value in form.items() if not isinstance(value, str)}
    await form.close()
    return fields, sent


def home_page(explainer: Explainer, answering: Answering) -> str:
    """The page on which a person asks."""
    from fxplain.attribution.table import AUTO, METHODS

    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    limits = {"bytes": MOST_BYTES, "letters": MOST_LETTERS, "tokens": MOST_TOKENS}
    return page(
        "serve.html.j2",
        title=explainer.loaded.name,
        takes=answering.takes(),
        methods=[AUTO, *METHODS],
        limits=limits,
        data=json.dumps(limits),
        script=script,
        digest=digest,
    )


@cache
def _script() -> str:
    return (files("fxplain.render") / "templates" / "serve.js").read_text(encoding="utf-8")


class Web:
    """What is used of starlette."""

    def __init__(self) -> None:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import HTMLResponse, JSONResponse
        from starlette.routing import Route

        self.in_thread = run_in_threadpool
        self._html, self._json, self._app, self._route = HTMLResponse, JSONResponse, Starlette, Route
        # another site's name that was made to point here (DNS rebinding) is refused
        self._hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)

    def html(self, text: str, headers: dict[str, str], status: int = 200) -> Response:
        return self._html(text, status, headers)

    def json(self, value: Any, status: int, headers: dict[str, str]) -> Response:
        return self._json(value, status, headers)

    def made(self, routes: list[tuple[str, Any, str]]) -> Starlette:
        made = [self._route(path, answer, methods=[method]) for path, answer, method in routes]
        return self._app(routes=made, middleware=[self._hosts])


def library() -> Web:
    """Starlette, imported when a page is served.

    Raises:
        OutputError: it is not installed.
    """
    missing = [name for name in ("starlette", "python_multipart", "uvicorn") if find_spec(name) is None]
    if missing:
        raise OutputError(
            "what serves pages is not installed",
            expected="starlette, python-multipart and uvicorn",
            found=f"no {', '.join(missing)}",
            hint="install it: pip install 'fxplain[serve]'",
        )
    return Web()


def serve(explainer: Explainer, port: int = 0, tell: Any = print) -> None:
    """Serve the page until it is interrupted.

    Args:
        explainer: the model and its processor.
        port: where on this machine; 0 for any that is free.
        tell: is called with the address.

    Raises:
        OutputError: starlette or uvicorn is not installed, or the port is taken.
    """
    token = secrets.token_urlsafe(18)
    made = application(explainer, token)
    import uvicorn

    with socket.socket() as own:
        try:
            own.bind((HOST, port))
        except OSError as error:
            raise OutputError(
                "the port cannot be had", found=f"{port}: {error.strerror}", hint="--port 0"
            ) from error
        tell(f"http://{HOST}:{own.getsockname()[1]}/{token}/")
        config = uvicorn.Config(made, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[own])
