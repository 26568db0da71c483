"""Opens what images and audio come from: regular files and nothing else, and URLs within limits.

Reading a FIFO, a socket or a device may wait for ever or change it. A URL may come from a table or a model's user. So
that it reaches nothing inside of a network, its host's addresses are looked up once, all of them must be public, and
the connection goes to one of those that were checked; the same again for each redirect. Proxies of the environment are
not used, because they would look the name up anew.
"""

import base64
import contextlib
import http.client
import importlib
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import time
from typing import BinaryIO
from urllib.parse import quote, unquote, urljoin, urlsplit


MAX_BYTES = 100 * 10**6
MAX_SECONDS = 60.0  # for everything: names, redirects, the body
MAX_REDIRECTS = 5
ALLOW_LOCAL = "HF_CLIP_VARIANTS_ALLOW_LOCAL_URLS"  # set to 1, the environment variable allows non-public addresses
_REDIRECTS = (301, 302, 303, 307, 308)
_SECONDS_TO_CONNECT = 5  # to an address, where there are others
_FILE_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


# ---- files


def check_regular(path: str | os.PathLike) -> None:
    """OSError for what is there and no regular file, and for what is not there; nothing is opened."""
    _check_mode(os.stat(path).st_mode, path)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, open for reading bytes. OSError names the path and says what it is instead."""
    check_regular(path)
    # Another process may have put a FIFO in its place since: then this does not wait, and the second look sees it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike) -> bytes:
    """The content of a regular file; see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _check_mode(mode: int, path: str | os.PathLike) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder, not a file")
    kind = next((name for is_kind, name in _FILE_KINDS if is_kind(mode)), "something else")
    raise OSError(f"{os.fspath(path)!r} is not a regular file but {kind}")


# ---- URLs


def download(url: str, allow_local: bool | None = None, seconds: float | None = None) -> bytes:
    """What is at an http(s) URL.

    Args:
        allow_local: also loopback and private addresses, but not by a redirect from another host. Default: what the
            environment variable `HF_CLIP_VARIANTS_ALLOW_LOCAL_URLS` says (1: yes); no if it is not set.
        seconds: for all of it. Default: `MAX_SECONDS`.

    Raises:
        ValueError: it cannot be fetched within `MAX_BYTES`, the time and `MAX_REDIRECTS`, or is at an address that is
            not public. The message names the URL.
    """
    if allow_local is None:
        allow_local = os.environ.get(ALLOW_LOCAL, "").lower() in ("1", "true", "yes", "on")
    deadline = time.monotonic() + (MAX_SECONDS if seconds is None else seconds)
    place = url
    try:
        for _ in range(MAX_REDIRECTS + 1):
            # What is allowed is the host that was asked for: a redirect leads to public ones only.
            same_host = urlsplit(place).hostname == urlsplit(url).hostname
            answer = _fetch(place, allow_local and same_host, deadline)
            if isinstance(answer, bytes):
                return answer
            place = urljoin(place, answer)
        raise _Refused(f"more than {MAX_REDIRECTS} redirects")
    # UnicodeError and ValueError: a host or a port that is none.
    except (OSError, http.client.HTTPException, ValueError) as error:
        if not isinstance(error, _Refused) and time.monotonic() >= deadline:
            error = _Refused("it took too long")
        if isinstance(error, http.client.HTTPException):  # its text is what the server sent
            error = _Refused(f"no proper answer: {type(error).__name__}")
        by_way_of = "" if place == url else f", redirected to {place[:200]}"
        raise ValueError(f"cannot fetch {url[:200]} ({str(error) or type(error).__name__}{by_way_of})") from error


class _Refused(ValueError):
    """Why a URL is not fetched."""


def _fetch(url: str, allow_local: bool, deadline: float) -> bytes | str:
    """The body, or where a redirect leads."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _Refused("want http://host/… or https://host/…")
    if re.search(r"[\x00-\x20\x7f]", url):
        raise _Refused("a blank or a control character in it")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    addresses = _checked_addresses(parts.hostname, port, allow_local, deadline)
    host = parts.hostname.encode("idna").decode() if ":" not in parts.hostname else parts.hostname
    connection = _Connection(host, port, addresses, parts.scheme == "https", deadline)
    # Reads have no common limit of their own: a server may send a byte each second. This one ends all of them.
    ending = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    ending.daemon = True
    ending.start()
    try:
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            f"?{quote(parts.query, safe='/%:@!$&' + chr(39) + '()*+,;=~?[]')}" if parts.query else ""
        )
        headers = {"User-Agent": "hf-clip-variants", "Accept": "image/*,*/*", "Accept-Encoding": "identity"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        connection.request("GET", path, headers=headers)
        return _answer(connection.getresponse(), deadline)
    finally:
        ending.cancel()
        connection.close()


def _answer(response: http.client.HTTPResponse, deadline: float) -> bytes | str:
    if response.status in _REDIRECTS and response.headers.get("Location"):
        return response.headers["Location"]
    if response.status != 200:
        raise _Refused(f"the server answers {response.status} {response.reason}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Refused("the server compresses what was asked for as it is")
    length = response.headers.get("Content-Length", "")
    told = f"more than {MAX_BYTES // 10**6} MB"
    if length.isdecimal() and int(length) > MAX_BYTES:
        raise _Refused(f"{told}: {int(length):,} bytes")
    content = bytearray()
    while part := response.read1(1 << 16):
        content += part
        if len(content) > MAX_BYTES:
            raise _Refused(told)
        if time.monotonic() > deadline:
            raise _Refused("it took too long")
    if time.monotonic() > deadline:  # cut off, which looks like an end
        raise _Refused("it took too long")
    if length.isdecimal() and len(content) < int(length):
        raise _Refused(f"the connection ended after {len(content):,} of {int(length):,} bytes")
    return bytes(content)


class _Connection(http.client.HTTPConnection):
    """A connection to one of the addresses that were checked, whatever the name says now."""

    def __init__(self, host: str, port: int, addresses: list[tuple], encrypted: bool, deadline: float):
        super().__init__(host, port, timeout=max(0.1, deadline - time.monotonic()))
        self._kept: socket.socket | None = None
        self.addresses, self.encrypted = addresses, encrypted
        # Of the scheme: http.client leaves it out of the header `Host`.
        self.default_port = 443 if encrypted else 80

    def connect(self) -> None:
        for last, (family, place) in enumerate(self.addresses, 1 - len(self.addresses)):
            self.sock = socket.socket(family, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout if last == 0 else min(self.timeout, _SECONDS_TO_CONNECT))
            try:
                self.sock.connect(place)
                break
            except OSError:  # perhaps IPv6, which this machine has not: the next one
                self.sock.close()
                if last == 0:
                    raise
        self.sock.settimeout(self.timeout)
        if self.encrypted:
            context = ssl.create_default_context()
            # The certificates that huggingface_hub's requests trust. Not an import statement: transformers asks for
            # every package that travelling code imports.
            with contextlib.suppress(ImportError):
                if "SSL_CERT_FILE" not in os.environ:
                    context.load_verify_locations(importlib.import_module("certifi").where())
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
        self._kept = self.sock  # http.client forgets it where the answer is to end the connection

    def cut(self) -> None:
        """End whatever waits for this connection; from another thread."""
        with contextlib.suppress(OSError, TypeError):  # not yet, or no longer connected
            socket.socket.shutdown(self._kept, socket.SHUT_RDWR)


def _checked_addresses(host: str, port: int, allow_local: bool, deadline: float) -> list[tuple[int, tuple]]:
    """(family, address) to connect to, in the system's order. ValueError unless all addresses of the host may be."""
    found: list = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=look_up, daemon=True)  # looking a name up has no limit of time
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not found:
        raise _Refused("it took too long")
    if isinstance(found[0], Exception):
        raise found[0]
    addresses = [(family, place) for family, *_, place in found[0] if family in (socket.AF_INET, socket.AF_INET6)]
    if not addresses:
        raise _Refused("the host has no address")
    for _, place in addresses:
        if is_public(place[0]):
            continue
        if _is_link_local(place[0]):  # where clouds serve a machine's own credentials, and nobody images
            raise _Refused(f"{host} is at {place[0]}, a link-local address")
        if not allow_local:
            raise _Refused(
                f"{host} is at {place[0]}, no public address; the environment variable {ALLOW_LOCAL}=1 allows it, "
                "but not for redirects from other hosts"
            )
    return addresses


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it holds another one.

    >>> [is_public(a) for a in ("8.8.8.8", "127.0.0.1", "10.1.2.3", "::ffff:127.0.0.1", "2002:7f00:1::")]
    [True, False, False, False, False]
    """
    ip = _innermost(address)
    return ip.is_global and not ip.is_multicast


def _is_link_local(address: str) -> bool:
    return _innermost(address).is_link_local


def _innermost(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for, or else the address itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 4:
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1]) or ip


__all__ = [
    "ALLOW_LOCAL",
    "MAX_BYTES",
    "MAX_REDIRECTS",
    "MAX_SECONDS",
    "check_regular",
    "download",
    "is_public",
    "open_regular",
    "read_regular",
]
