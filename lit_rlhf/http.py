"""Asking servers over HTTP: the one client of rewards, judges and rollouts (JSON in, JSON out).

Requests go out several at a time, have a time limit each, and are sent again where a server fails for the moment. An
API key comes from an environment variable, so that no configuration, checkpoint or log holds it.
"""

import email.utils
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from lit_rlhf.errors import ConfigurationError, ServiceError
from lit_rlhf.options import check_option, is_number, is_whole

Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_LONGEST_WAIT = 60.0
_PASSING = {408, 409, 423, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
"""Statuses after which the same request may succeed: time limits, rate limits, servers that are down or overloaded."""
_SET_WRONG = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}
"""Statuses that every request would get: the address, the key or the account is wrong."""


@dataclass(frozen=True)
class Endpoint:
    """A server, and how it is asked.

    Args:
        url: Its address, such as http://127.0.0.1:8000; paths are added to it.
        api_key_env: Environment variable that holds the API key, sent as a bearer token. None: no key.
        headers: Further headers of every request; no secrets, for configurations are saved with runs.
        concurrency: Requests in flight at a time, at least 1.
        timeout: Most seconds that one request may take until its answer is complete, queueing at the server included.
        retries: How often a request that failed for the moment (no connection, time limit, HTTP 408, 429, 5xx, an
            answer that is no JSON) is sent again; 0 or more.
        backoff: Seconds, about, before the first time it is sent again; each further wait may be twice as long, up to a
            minute, and is drawn at random below that. Where the server says how long (Retry-After), it waits so long.
        proxy: Use the environment's proxy (HTTPS_PROXY and so on); never for an address of this machine.

    Raises:
        ConfigurationError: An option is out of range.
    """

    url: str
    api_key_env: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 0.5
    proxy: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        check_option(
            _is_address(self.url), self, "url", self.url, "an address with http:// or https://"
        )
        whole = is_whole(self.concurrency, 1)
        check_option(whole, self, "concurrency", self.concurrency, "a whole number of at least 1")
        positive = is_number(self.timeout) and self.timeout > 0
        check_option(positive, self, "timeout", self.timeout, "above 0 seconds")
        check_option(is_whole(self.retries, 0), self, "retries", self.retries, "0 or more")
        waits = is_number(self.backoff) and self.backoff >= 0
        check_option(waits, self, "backoff", self.backoff, "0 seconds or more")


class HTTPClient:
    """Asks one server for JSON; safe to use from several threads, and to pickle.

    Args:
        endpoint: The server.

    Example:
        client = HTTPClient(Endpoint("http://127.0.0.1:8000"))
        answers = list(client.map(lambda body: client.post("/score", body), bodies))
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def get(self, path: str, retries: int | None = None) -> Any:
        """The JSON at a path; see `post`."""
        return self._ask("GET", path, None, retries)

    def post(self, path: str, body: Any, retries: int | None = None, *, reads: bool = True) -> Any:
        """Send JSON to a path, and return the JSON it is answered with; None for an empty answer.

        Args:
            path: Added to the endpoint's address.
            body: What `json.dumps` takes; lone surrogates survive.
            retries: Instead of the endpoint's, for requests that mustn't be sent twice.
            reads: Whether the answer is read; without, success is all that is asked for, and None returned.

        Raises:
            ConfigurationError: Every request would fail so: no such address, a key that is missing or refused.
            ServiceError: This request failed, the retries included; others may succeed.
        """
        data = json.dumps(body, allow_nan=False).encode("ascii")
        return self._ask("POST", path, data, retries, reads=reads)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function's results in the order of the items, `concurrency` of them computed at a time.

        An error, or no longer asking for results, cancels what hasn't begun.
        """
        pool = ThreadPoolExecutor(self.endpoint.concurrency, "http")
        try:
            yield from pool.map(function, items)
        except BaseException as error:
            self._closed.set()  # those that wait for their next try give up
            if isinstance(error, KeyboardInterrupt):
                _log.warning(
                    "Requests that are under way are waited for, %g seconds at most.",
                    self.endpoint.timeout,
                )
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._closed.clear()

    def close(self) -> None:
        """Close its connections; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def __reduce__(self) -> tuple[type["HTTPClient"], tuple[Endpoint]]:
        return HTTPClient, (self.endpoint,)

    def _ask(
        self, method: str, path: str, body: bytes | None, retries: int | None, *, reads: bool = True
    ) -> Any:
        retries = self.endpoint.retries if retries is None else retries
        grows = wait_random_exponential(self.endpoint.backoff, _LONGEST_WAIT)

        def wait(state: RetryCallState) -> float:
            asked = getattr(state.outcome and state.outcome.exception(), "retry_after", None)
            return grows(state) if asked is None else min(asked, _LONGEST_WAIT)

        again = Retrying(
            stop=stop_after_attempt(retries + 1),
            wait=wait,
            retry=retry_if_exception_type(_PassingError),
            sleep=sleep_using_event(self._closed),
            reraise=True,
        )
        try:
            return again(partial(self._once, method, path, body, reads=reads))
        except _PassingError as error:
            tries = f" after {retries + 1} tries" if retries else ""
            raise ServiceError(f"{self._server(path)} {error}{tries}.") from error

    def _once(self, method: str, path: str, body: bytes | None, *, reads: bool) -> Any:
        if self._closed.is_set():
            raise ServiceError(f"{self._server(path)} was not asked, as another request failed.")
        try:
            response = self._send(method, path, body)
        except httpx.TimeoutException as error:
            raise _PassingError(
                f"took more than timeout={self.endpoint.timeout} seconds (raise timeout, or lower concurrency)"
            ) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigurationError(f"{self._server(path)} can't be asked: {error}.") from error
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise _PassingError(f"can't be reached ({said})") from error
        if response.is_success:
            return self._read(response) if reads else None
        raise self._refusal(response, path)

    def _send(self, method: str, path: str, body: bytes | None) -> httpx.Response:
        """One request; httpx limits each wait for bytes, and this the sum of them."""
        end = time.monotonic() + self.endpoint.timeout
        headers = {**self.endpoint.headers, "content-type": "application/json", **self._key()}
        url = f"{self.endpoint.url.rstrip('/')}/{path.lstrip('/')}"
        with self._connections().stream(method, url, content=body, headers=headers) as response:
            found = bytearray()
            for part in response.iter_bytes():
                found += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer is not complete")
        return httpx.Response(
            response.status_code,
            headers={
                name: response.headers[name]
                for name in ("retry-after", "location")
                if name in response.headers
            },
            content=bytes(found),
        )

    def _read(self, response: httpx.Response) -> Any:
        if not response.content.strip():
            return None
        try:
            return response.json()
        except ValueError as error:  # UnicodeDecodeError is one
            raise _PassingError(f"answered with what is no JSON ({_start(response)})") from error

    def _refusal(self, response: httpx.Response, path: str) -> Exception:
        status = response.status_code
        said = f"HTTP {status}: {_start(response)}"
        if status in _PASSING:
            return _PassingError(f"failed ({said})", _retry_after(response))
        if status not in _SET_WRONG:
            return ServiceError(f"{self._server(path)} refused a request ({said}).")
        key = self.endpoint.api_key_env
        if status in (401, 402, 403):
            way_out = f"Look at the key in ${key}" if key else "Name a key's variable (api_key_env)"
        elif response.headers.get("location"):
            way_out = f"It points to {response.headers['location']}: give that address"
        else:
            way_out = "Look at the url: which paths the server has, it says itself"
        return ConfigurationError(f"{self._server(path)} refuses ({said}). {way_out}.")

    def _key(self) -> dict[str, str]:
        name = self.endpoint.api_key_env
        if name is None:
            return {}
        key = os.environ.get(name, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            what = "isn't set" if not key else "holds characters that no key has"
            raise ConfigurationError(
                f"The environment variable {name!r}, which is to hold the key of {self.endpoint.url}, {what}: "
                f"export {name}=... (or set api_key_env to another one, or null)."
            )
        return {"authorization": f"Bearer {key}"}

    def _connections(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                most, host = self.endpoint.concurrency, httpx.URL(self.endpoint.url).host
                local = host in ("localhost", "::1") or host.startswith("127.")
                self._client = httpx.Client(
                    timeout=httpx.Timeout(self.endpoint.timeout, pool=None),
                    limits=httpx.Limits(
                        max_connections=most, max_keepalive_connections=most, keepalive_expiry=30.0
                    ),
                    trust_env=self.endpoint.proxy and not local,
                )
                weakref.finalize(self, self._client.close)
            return self._client

    def _server(self, path: str) -> str:
        return f"The server at {self.endpoint.url.rstrip('/')}/{path.lstrip('/')}"


class _PassingError(Exception):
    """What may be over when the request is sent again."""

    def __init__(self, said: str, retry_after: float | None = None) -> None:
        super().__init__(said)
        self.retry_after = retry_after


def addresses(owner: object, urls: str | list[str]) -> list[str]:
    """The option `urls` of `owner` as a list: one address or several different ones, without a slash at the end.

    Raises:
        ConfigurationError: Another value.
    """
    found = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
    right = 0 < len(found) == len(set(found)) and all(map(_is_address, found))
    allowed = "one address with http:// or https://, or several different ones"
    check_option(right, owner, "urls", urls, allowed)
    return found


def _is_address(url: object) -> bool:
    try:
        found = httpx.URL(str(url))
    except httpx.InvalidURL:
        return False
    return found.scheme in ("http", "https") and bool(found.host)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form that the header has: a number, or a date."""
    said = response.headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None


def _start(response: httpx.Response) -> str:
    """The beginning of an answer, on one line."""
    text = " ".join(response.content[:2000].decode("utf-8", "replace").split())
    return repr(text[:300]) if text else "an empty answer"
