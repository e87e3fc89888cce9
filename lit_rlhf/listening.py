"""What servers of this library share: which addresses need a secret, how secrets are compared, how an app is run."""

import hmac
import ipaddress
import logging
import socket
import sys
from typing import Any

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.extras import importing_extra

_log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_names(host: str) -> list[str]:
    """Names by which this machine may call itself; a page from elsewhere can point another name at it."""
    return ["127.0.0.1", "localhost", "[::1]", "::1", host]


def same_secret(given: str, wanted: str) -> bool:
    """Compare in a time that tells nothing."""
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode(errors="replace"))


def open_port(host: str, port: int) -> socket.socket:
    """A socket that takes connections at an address; before minutes of loading, to see that it can.

    Raises:
        ConfigurationError: The address can't be listened on.
    """
    if not 0 <= port <= 65535:
        raise ConfigurationError(
            f"There is no port {port}: ports go from 0 (any that is free) to 65535."
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"Can't listen on port {port} of {host}: {error}. Take another with --port, or 0 for any that is free."
        ) from error


def listen(app: Any, host: str, port: int, said: str) -> None:
    """Serve an ASGI application until it is interrupted (Ctrl-C), and say where it is.

    Args:
        app: The application.
        host: Address to listen on.
        port: 0 takes a free one.
        said: Written to standard output once connections are taken, with {address} for the address.

    Raises:
        ConfigurationError: The address can't be listened on.
    """
    with importing_extra("serve", "A server"):
        import uvicorn

    listener = open_port(host, port)
    name = f"[{host}]" if ":" in host else host
    sys.stdout.write(said.format(address=f"http://{name}:{listener.getsockname()[1]}") + "\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn has closed down in order, and passes on what it was told
        _log.info("stopped")
    finally:
        listener.close()
