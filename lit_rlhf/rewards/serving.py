"""A reward model that answers over HTTP; `lit_rlhf.rewards.remote.HTTPReward` asks it. Needs the extra `serve`."""

import asyncio
import hashlib
import json
import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import import_module
from math import isfinite
from typing import Any

from lit_rlhf import __version__
from lit_rlhf.errors import ConfigurationError, DataError
from lit_rlhf.extras import importing_extra
from lit_rlhf.listening import is_loopback, listen, local_names, same_secret
from lit_rlhf.models import Backbone
from lit_rlhf.models.fingerprint import weights_fingerprint
from lit_rlhf.rewards.model import score_rows
from lit_rlhf.rewards.retokenize import TextReader, token_rows, vocabulary_hash

with importing_extra("serve", "Serving a reward model"):
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    import_module("uvicorn")  # what `listen` runs it with: missed now, before anything is loaded

_log = logging.getLogger(__name__)
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Item:
    """A prompt and its completions, as ids."""

    prompt: list[int]
    completions: list[list[int]]

    def size(self) -> int:
        """Its tokens."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class _Job:
    items: list[Item]
    done: "Future[list[list[float]]]" = field(default_factory=Future)


class RewardService:
    """A reward model, and the thread that scores with it what has come in while it was busy.

    Args:
        backbone: With the head "reward", as `load_reward_model` gives it.
        name: What it is called in answers.
        batch_tokens: Most tokens that are scored at a time, padding included.
    """

    def __init__(self, backbone: Backbone, name: str, batch_tokens: int = 8192) -> None:
        self.backbone, self.name, self.batch_tokens = backbone, name, batch_tokens
        tokenizer = backbone.tokenizer
        self.reader = None if tokenizer.eos_token_id is None else TextReader(tokenizer)
        self.context = backbone.context_length
        self.vocabulary_size = int(backbone.model.config.get_text_config().vocab_size)
        digest = hashlib.sha256(weights_fingerprint(backbone, "reward").encode())
        for value in backbone.heads["reward"].state_dict().values():
            digest.update(value.detach().float().cpu().numpy().tobytes())
        self.weights = digest.hexdigest()
        self._jobs: queue.Queue[_Job] = queue.Queue()
        threading.Thread(target=self._work, name="scores", daemon=True).start()

    def health(self) -> dict[str, Any]:
        """What it is."""
        return {
            "status": "ok",
            "service": "lit-rlhf serve-reward",
            "version": __version__,
            "model": self.name,
            "weights": self.weights,
            "vocabulary": vocabulary_hash(self.backbone.tokenizer),
            "context": self.context,
            "chat_template": self.backbone.tokenizer.chat_template is not None,
            "score_mean": self.backbone.score_mean,
            "score_std": self.backbone.score_std,
        }

    def items(self, body: Any) -> list[Item]:
        """The prompts of a request.

        Raises:
            DataError: It is none that can be scored.
        """
        listed = body.get("prompts") if isinstance(body, dict) else None
        if not isinstance(listed, list) or not listed:
            raise DataError(
                'A request is {"prompts": [..]}, a list of at least one prompt with its completions.'
            )
        return [self._item(entry, f"prompts[{i}]") for i, entry in enumerate(listed)]

    def submit(self, items: list[Item]) -> "Future[list[list[float]]]":
        """Have them scored, with others that wait."""
        job = _Job(items)
        self._jobs.put(job)
        return job.done

    def _item(self, entry: Any, where: str) -> Item:
        entry = entry if isinstance(entry, dict) else {}
        prompts = [name for name in ("prompt", "messages", "prompt_ids") if name in entry]
        texts = prompts != ["prompt_ids"]
        column = "completions" if texts else "completion_ids"
        given = entry.get(column)
        if len(prompts) != 1 or not isinstance(given, list) or not given:
            raise DataError(
                f"{where} needs either prompt or messages, with completions, or prompt_ids, with completion_ids, and "
                "at least one completion."
            )
        unknown = sorted(set(entry) - {*prompts, column, "finished"})
        if unknown:
            raise DataError(f"{where} has {unknown}, which nothing here reads.")
        item = self._of_texts(entry, where) if texts else Item(entry["prompt_ids"], given)
        self._check(item, where)
        return item

    def _of_texts(self, entry: dict[str, Any], where: str) -> Item:
        completions, tokenizer = entry["completions"], self.backbone.tokenizer
        finished = entry.get("finished", [True] * len(completions))
        if not all(isinstance(text, str) for text in completions):
            raise DataError(f"{where}.completions must be texts.")
        right = isinstance(finished, list) and all(isinstance(each, bool) for each in finished)
        if not right or len(finished) != len(completions):
            raise DataError(f"{where}.finished must be true or false for each completion.")
        if self.reader is None:
            raise DataError(
                f"The tokenizer of {self.name} has no EOS token to end texts with: send ids."
            )
        if "prompt" in entry:
            if not isinstance(entry["prompt"], str):
                raise DataError(f"{where}.prompt must be a text.")
            read = self.reader.read(entry["prompt"], completions, finished, rendered=False)
            return Item(*read)
        if tokenizer.chat_template is None:
            raise DataError(
                f"{where}.messages can't be read: {self.name} has no chat template. Send prompt."
            )
        try:
            text = self.reader.render(entry["messages"], f"{where}.messages")
        except DataError:
            raise
        except Exception as error:  # templates raise what they like
            raise DataError(f"{where}.messages: the chat template refuses them: {error}") from error
        return Item(*self.reader.read(text, completions, finished, rendered=True))

    def _check(self, item: Item, where: str) -> None:
        parts: list[Any] = [item.prompt, *item.completions]
        for ids in parts:
            if not isinstance(ids, list) or not ids:
                raise DataError(f"{where} has a prompt or a completion that isn't a list of ids.")
            if not all(type(i) is int and 0 <= i < self.vocabulary_size for i in ids):
                raise DataError(
                    f"{where} has ids that aren't whole numbers from 0 to {self.vocabulary_size - 1}."
                )
        longest = len(item.prompt) + max(map(len, item.completions))
        if self.context is not None and longest > self.context:
            raise DataError(
                f"{where} has {longest} tokens with its longest completion; {self.name} reads {self.context}."
            )

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            size = sum(item.size() for item in jobs[0].items)
            while size < self.batch_tokens:
                try:
                    jobs.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
                size += sum(item.size() for item in jobs[-1].items)
            # Who has gone away asks again: of work for nobody a slow server would never come to that.
            wanted = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _answer(self, jobs: Sequence[_Job]) -> None:
        items = [item for job in jobs for item in job.items]
        try:
            scores = self.score(items)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            if len(jobs) > 1:  # memory, say: each by itself may do
                for job in jobs:
                    self._answer([job])
            else:
                traced = not isinstance(error, DataError)
                _log.error("a request can't be scored: %s", error, exc_info=traced)
                jobs[0].done.set_exception(error)
            return
        for job in jobs:
            mine, scores = scores[: len(job.items)], scores[len(job.items) :]
            job.done.set_result(mine)

    def score(self, items: Sequence[Item]) -> list[list[float]]:
        """Scores of the completions of each prompt, those with equally many together.

        Raises:
            DataError: The model gives a number that isn't finite, which no JSON holds.
        """
        found: list[list[float]] = [[] for _ in items]
        for samples in {len(item.completions): None for item in items}:
            places = [i for i, item in enumerate(items) if len(item.completions) == samples]
            rows = token_rows(
                [items[i].prompt for i in places],
                [ids for i in places for ids in items[i].completions],
                self.backbone.device,
            )
            scores = score_rows(self.backbone, rows, "reward", self.batch_tokens, self.name)
            for i, own in zip(places, scores.tolist(), strict=True):
                if not all(map(isfinite, own)):
                    raise DataError(
                        f"{self.name} gives {own} for the completions of prompts[{i}], and scores must be finite: "
                        "serve it with --dtype float32, or another model."
                    )
                found[i] = own
        return found


def create_app(
    service: RewardService, key: str | None = None, hosts: Sequence[str] | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        service: What scores.
        key: What clients must send as a bearer token. None: nothing.
        hosts: Names by which it may be called. None: any.
    """
    app = FastAPI(title="lit-rlhf serve-reward", docs_url=None, redoc_url=None, openapi_url=None)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    def admit(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if key is not None and not same_secret(given, f"Bearer {key}"):
            raise HTTPException(401, "This server needs its API key, as a bearer token.")

    @app.get("/health")
    async def health(request: Request) -> Response:
        admit(request)
        return JSONResponse(service.health())

    @app.post("/score")
    async def score(request: Request) -> Response:
        admit(request)
        items = service.items(await _read(request))
        scores = await _unless_gone(request, service.submit(items))
        return JSONResponse({"scores": scores, "weights": service.weights})

    @app.exception_handler(DataError)
    def misread(_: Request, error: DataError) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(AnyHTTPException)
    def refuse(_: Request, error: AnyHTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.exception_handler(Exception)
    def fail(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"It can't be scored: {type(error).__name__}: {error}"}, 500)

    return app


async def _read(request: Request) -> Any:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, f"A request may have {_MOST_BYTES // 2**20} MiB: send fewer.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"A request is JSON, and this one isn't: {error}.") from error


async def _unless_gone(request: Request, job: "Future[list[list[float]]]") -> list[list[float]]:
    """The result of a job, which isn't begun when its client has hung up."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    done, gone = asyncio.wrap_future(job), asyncio.ensure_future(hung_up())
    both: set[asyncio.Future[Any]] = {done, gone}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not done.done() and done.cancel():
        raise HTTPException(499, "The client has gone.")
    return await done


def serve(
    service: RewardService, *, host: str = "127.0.0.1", port: int = 8000, key: str | None = None
) -> None:
    """Answer until it is interrupted (Ctrl-C).

    Args:
        service: What scores.
        host: Address to listen on; others than this machine's own need a key.
        port: 0 takes a free one.
        key: What clients must send.

    Raises:
        ConfigurationError: The address can't be listened on, or no key is given where one must be.
    """
    require_key(host, key)
    app = create_app(service, key, local_names(host) if key is None else None)
    listen(app, host, port, f"Scores by {service.name} at {{address}}/score (Ctrl-C ends it)")


def require_key(host: str, key: str | None) -> None:
    """Refuse to answer everyone.

    Raises:
        ConfigurationError: The address isn't this machine's own, and there is no key.
    """
    if key is None and not is_loopback(host):
        raise ConfigurationError(
            f"host={host!r} can be reached from other machines, so that a key is needed: put one into a variable, and "
            "name that with --api-key-env."
        )
