"""Images of a request: data URLs, and addresses where the server allows them."""

import base64
import binascii
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hvlc.errors import UserError
from hvlc.files.scratch import temporary_directory
from hvlc.inputs.images import load_images
from hvlc.serving.limits import Limits

_DATA = re.compile(r"data:image/[A-Za-z0-9.+-]{1,40};base64,", re.ASCII)
_SECONDS = 10.0  # of fetching an image


def load_pictures(urls: Sequence[str], limits: Limits, *, remote: bool) -> list[Image.Image]:
    """RGB images of a request.

    Args:
        urls: in the order in which the images are shown.
        limits: of the server.
        remote: whether addresses are fetched.

    Raises:
        UserError: too many, not a data URL, not an image, or too large (`hvlc.inputs.images`).
    """
    if len(urls) > limits.images:
        cause = f"the request has {len(urls)} images, and {limits.images} are allowed"
        raise UserError("image.too_many", cause, "ask about fewer")
    if not urls:
        return []
    with temporary_directory("request") as scratch:
        paths = [scratch / f"image-{number}" for number in range(1, len(urls) + 1)]
        for path, url in zip(paths, urls, strict=True):
            path.write_bytes(_bytes(url, limits, remote=remote))
        return _loaded(paths)


def _loaded(paths: Sequence[Path]) -> list[Image.Image]:
    """Images of files, which an error names without their directory.

    Raises:
        UserError: see `load_pictures`.
    """
    try:
        return load_images(paths)
    except UserError as error:
        raise UserError(error.code, error.cause.replace(f"{paths[0].parent}/", ""), error.fix) from error


def _bytes(url: str, limits: Limits, *, remote: bool) -> bytes:
    head = _DATA.match(url)
    if head is not None:
        try:
            return base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(
                "image.unreadable", f"a data URL is not base64: {error}", "encode the image again"
            ) from error
    if url.startswith(("http://", "https://")):
        if not remote:
            cause = f"{url[:100]!r} is an address, and this server fetches none"
            raise UserError("image.remote", cause, "send a data URL, or start the server with --allow-remote-images")
        return _fetched(url, limits.body)
    cause = f"{url[:40]!r} is not a data URL of an image"
    raise UserError("image.url", cause, "send data:image/png;base64,...")


def _fetched(url: str, most: int) -> bytes:
    """Bytes of an image on another host, which is not of this machine's own network; redirects are not followed.

    Raises:
        UserError: the address is not public, or it cannot be fetched within the bounds.
    """
    shown = f"{url[:100]!r}"
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        address = _public(host, port)
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        with contextlib.closing(_connection(parts.scheme, host, port, address)) as connection:
            connection.request("GET", path, headers={"Accept": "image/*"})
            answer = connection.getresponse()
            data = answer.read(most + 1) if answer.status == 200 else b""
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError("image.remote", f"cannot fetch {shown}: {error}", "send a data URL") from error
    if answer.status != 200:
        raise UserError("image.remote", f"{shown} answers with status {answer.status}", "send a data URL")
    if len(data) > most:
        raise UserError("image.too_large", f"{shown} has more than {most} bytes", "shrink it first")
    return data


def _public(host: str, port: int) -> str:
    """Address of a host, which strangers may reach through this machine.

    Raises:
        OSError: the host is unknown.
        UserError: one of its addresses is not public.
    """
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    private = [address for address in found if not ipaddress.ip_address(address).is_global]
    if private:
        cause = f"{host[:100]!r} is {private[0]}, which is not a public address"
        raise UserError("image.remote", cause, "send a data URL")
    return found[0]


def _connection(scheme: str, host: str, port: int, address: str) -> http.client.HTTPConnection:
    """A connection to the very address that was checked: a second look-up may find another one."""
    tcp = socket.create_connection((address, port), timeout=_SECONDS)
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    connection.sock = tcp if scheme == "http" else ssl.create_default_context().wrap_socket(tcp, server_hostname=host)
    return connection
