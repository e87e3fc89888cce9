"""Work that goes on beside the caller's."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_a_thread(function: Callable[[], Result], name: str) -> Future[Result]:
    """What a function returns, or raises, once it has.

    Its thread is a daemon: a run that ends by an error doesn't wait for what nobody will see.
    """
    found: Future[Result] = Future()

    def run() -> None:
        try:
            found.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised to whoever asks for the result
            found.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return found
