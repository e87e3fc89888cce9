"""The page where people compare answers: FastAPI, pages made on the server, no network and no build step.

Needs the extra `annotate`.
"""

import hashlib
import logging
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.extras import importing_extra
from lit_rlhf.feedback.preferences import progress
from lit_rlhf.feedback.rendering import turns
from lit_rlhf.feedback.store import LabelStore, Verdict, Vote
from lit_rlhf.listening import is_loopback, listen, local_names, same_secret
from lit_rlhf.options import check_option

with importing_extra("annotate", "Annotating"):
    from fastapi import Depends, FastAPI, Form, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, RedirectResponse
    from fastapi.staticfiles import StaticFiles
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    import_module("uvicorn")  # what `listen` runs it with: missed now, before anything is loaded

_log = logging.getLogger(__name__)
_YEAR = 365 * 24 * 3600
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Page:
    """What raters are asked, and how texts are shown.

    Args:
        attributes: Names of what is asked beside the overall choice, such as helpful and harmless.
        comments: Whether there is a field for free text.
        markdown: Whether Markdown is rendered; else texts are shown as they are written.
        instructions: What raters are told on the first page; Markdown.
    """

    attributes: Sequence[str] = ()
    comments: bool = False
    markdown: bool = True
    instructions: str = ""

    def __post_init__(self) -> None:
        names = list(self.attributes)
        valid = len(set(names)) == len(names) <= 9 and all(name.strip() for name in names)
        check_option(valid, self, "attributes", names, "up to 9 different names")


class _Site:
    """Pages of one labelling."""

    def __init__(self, store: LabelStore, page: Page, token: str | None) -> None:
        self.store, self.page, self.token, self.secret = store, page, token, store.secret
        # Browsers keep cookies by host, whatever the port: those of two labellings must not meet.
        self.suffix = hashlib.sha256(self.secret.encode()).hexdigest()[:8]
        self.templates = Environment(
            loader=PackageLoader("lit_rlhf.feedback"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def show(self, name: str, request: Request, status: int = 200, **values: Any) -> HTMLResponse:
        rater = self.rater(request)
        voted, total = self.store.counts(rater) if rater and status < 500 else (0, 0)
        body = self.templates.get_template(f"{name}.html.j2").render(
            page=self.page, secret=self.secret, rater=rater, voted=voted, total=total, **values
        )
        return HTMLResponse(body, status)

    def cookie(self, request: Request, name: str) -> str:
        return unquote(request.cookies.get(f"{name}-{self.suffix}", ""))

    def rater(self, request: Request) -> str:
        return self.cookie(request, "rater")

    def remember(self, name: str, value: str) -> Response:
        response = RedirectResponse("/", 303)
        cookie = f"{name}-{self.suffix}"
        response.set_cookie(cookie, quote(value), max_age=_YEAR, httponly=True, samesite="lax")
        return response

    def admit(self, request: Request) -> None:
        """Refuse who hasn't the token."""
        if self.token is not None and not same_secret(self.cookie(request, "token"), self.token):
            raise HTTPException(
                401, "This page needs the token that its owner was given at the start."
            )

    async def form(self, request: Request) -> dict[str, str]:
        """The fields of a form that a page of this labelling sent; others are refused."""
        fields = {name: str(value) for name, value in (await request.form()).items()}
        if not same_secret(fields.get("secret", ""), self.secret):
            raise HTTPException(
                403, "This form didn't come from this page. Reload the page and answer again."
            )
        return fields

    def keep(self, vote: Vote, before: str) -> None:
        """Store a vote that came from a page which shows the one before it; refuse it where another came between."""
        given = self.store.votes(vote.rater, vote.pair)
        if given and before != str(given[0].number):
            if replace(given[0], number=0) == vote:  # sent again, as its answer was lost
                return
            raise HTTPException(
                409,
                "You have answered this pair since this page was opened, in another tab perhaps. That answer stands: "
                "Undo leads back to it.",
            )
        try:
            self.store.vote(vote)
        except DataError as error:
            raise HTTPException(422, str(error)) from error

    def compare(self, request: Request, number: int, before: Vote | None) -> HTMLResponse:
        """The page of one pair."""
        pair, rater = self.store.pair(number), self.rater(request)
        if pair is None:
            raise HTTPException(404, f"There is no pair {number}.")
        swapped = before.swapped if before else self.store.is_swapped(number, rater)
        order: list[Verdict] = ["second", "first"] if swapped else ["first", "second"]
        given = self.store.votes(rater)
        earlier = [v for v in given if before is None or v.number < before.number]
        markdown = self.page.markdown
        answers = [
            (letter, side, turns(getattr(pair, side), "answer", markdown=markdown))
            for letter, side in zip("AB", order, strict=True)
        ]
        return self.show(
            "pair",
            request,
            number=number,
            prompt=turns(pair.prompt, "prompt", markdown=markdown),
            answers=answers,
            swapped=int(swapped),
            before=before,
            back=earlier[-1].pair if earlier else None,
        )


def create_app(
    store: LabelStore,
    page: Page | None = None,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The page as an ASGI application.

    Args:
        store: Where pairs come from and votes go to.
        page: What is asked. None: only which answer is better.
        token: What a visitor must know, in `/?token=...` or typed in. None: everybody who reaches the page may vote.
        hosts: Names by which browsers may call the page. None: any.
    """
    site = _Site(store, page or Page(), token)
    app = FastAPI(title="lit-rlhf annotate", docs_url=None, redoc_url=None, openapi_url=None)
    # A page from elsewhere can't point a name of its own at this machine, and so read and vote.
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    _add_door(app, site)
    _add_pages(app, site)

    @app.middleware("http")
    async def protect(request: Request, call_next: Any) -> Response:
        response = cast("Response", await call_next(request))
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(AnyHTTPException)
    def refuse(request: Request, error: AnyHTTPException) -> Response:
        page = "token" if error.status_code == 401 else "error"
        return site.show(page, request, error.status_code, message=error.detail)

    @app.exception_handler(RequestValidationError)
    def misread(request: Request, _: RequestValidationError) -> Response:
        return site.show("error", request, 422, message="This is no address or form of this page.")

    @app.exception_handler(sqlite3.Error)
    def not_stored(request: Request, error: sqlite3.Error) -> Response:
        _log.error("labels can't be read or written: %s", error)
        message = f"The labels can't be read or written ({error}). An answer just given was not saved: give it again."
        return site.show("error", request, 503, message=message)

    return app


def _add_door(app: FastAPI, site: _Site) -> None:
    """Routes by which a visitor comes in: token, then name."""

    @app.get("/")
    def start(request: Request, token: str | None = None) -> Response:
        if token is not None:
            return site.remember("token", token)
        site.admit(request)
        if site.rater(request):
            return RedirectResponse("/pair", 303)
        told = turns(site.page.instructions, "instructions", markdown=True)
        return site.show("name", request, instructions=told[0][1])

    @app.post("/token")
    def enter(token: str = Form(max_length=1000)) -> Response:
        return site.remember("token", token)

    @app.post("/rater", dependencies=[Depends(site.admit), Depends(site.form)])
    def choose_name(rater: str = Form("", max_length=1000)) -> Response:
        name = " ".join(rater.split())
        if not (0 < len(name) <= 60 and name.isprintable()):
            raise HTTPException(422, "A name has 1 to 60 characters that can be printed.")
        return site.remember("rater", name)

    @app.post("/leave", dependencies=[Depends(site.admit), Depends(site.form)])
    def leave() -> Response:
        response = RedirectResponse("/", 303)
        response.delete_cookie(f"rater-{site.suffix}")
        return response


def _add_pages(app: FastAPI, site: _Site) -> None:
    """Routes of a rater at work."""
    inside = [Depends(site.admit)]

    @app.get("/pair", dependencies=inside)
    def ask(request: Request) -> Response:
        rater = site.rater(request)
        if not rater:
            return RedirectResponse("/", 303)
        number = site.store.next_pair(rater)
        if number is None:
            given = site.store.votes(rater)
            return site.show("done", request, back=given[-1].pair if given else None)
        return site.compare(request, number, None)

    @app.get("/pair/{number}", dependencies=inside)
    def ask_again(request: Request, number: int) -> Response:
        given = site.store.votes(site.rater(request), number)
        return site.compare(request, number, given[0]) if given else RedirectResponse("/pair", 303)

    @app.post("/pair/{number}", dependencies=inside)
    def answer(
        request: Request,
        number: int,
        said: dict[str, str] = Depends(site.form),  # noqa: B008  (how FastAPI is told)
    ) -> Response:
        rater = site.rater(request)
        if not rater or said.get("rater") != rater:
            raise HTTPException(
                409, f"This page was opened for another rater: you are {rater!r} now."
            )
        given = {name: said.get(f"attribute {name}") for name in site.page.attributes}
        attributes = {name: value for name, value in given.items() if value}
        vote = Vote(
            pair=number,
            rater=rater,
            verdict=cast("Verdict", said.get("verdict")),
            swapped=said.get("swapped") == "1",
            attributes=cast("dict[str, Verdict]", attributes),
            comment=said.get("comment", "").strip()[:10_000],
        )
        site.keep(vote, said.get("before", ""))
        return RedirectResponse("/pair", 303)

    @app.get("/progress", dependencies=inside)
    def show_progress(request: Request) -> Response:
        return site.show("progress", request, progress=progress(site.store))


def serve(
    store: LabelStore,
    page: Page | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
) -> None:
    """Serve the page until it is interrupted (Ctrl-C), and say where it is.

    Args:
        store: Where pairs come from and votes go to.
        page: What is asked.
        host: Address to listen on. On others than this machine's own a token is needed, and made where none is given.
        port: 0 takes a free one.
        token: What visitors must know. None: nothing on this machine's own address.

    Raises:
        ConfigurationError: The address can't be listened on, or the token is empty.
    """
    if token is not None and not token.strip():
        raise ConfigurationError(
            "The token is empty; leave it out, and one is made where it is needed."
        )
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(16)
    app = create_app(store, page, token, local_names(host) if token is None else None)
    query = "" if token is None else f"?{urlencode({'token': token})}"
    listen(app, host, port, f"Compare answers at {{address}}/{query} (Ctrl-C ends it)")
