"""URLs of images: limits of size, time, redirects and addresses."""

import contextlib
import http.server
import socket
import threading
import time

import pytest

from hf_clip_variants.modeling.decoding import opening
from hf_clip_variants.modeling.decoding.opening import download, is_public


@contextlib.contextmanager
def server(respond):
    """Serves `respond(handler)` on this machine; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            with contextlib.suppress(OSError):
                respond(self)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads, running.block_on_close = True, False
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def answer(handler, body=b"", status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def drip(handler, first=b""):
    handler.wfile.write(first)
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


def test_a_body_comes_whole_with_its_query_and_password():
    seen = []

    def respond(handler):
        seen.append((handler.path, handler.headers["Authorization"]))
        answer(handler, b"abc" * 50_000)

    with server(respond) as url:
        assert download(url.replace("//", "//me:secret@") + "/a%20ü?x=1&y=%2F", True) == b"abc" * 50_000
    assert seen == [("/a%20%C3%BC?x=1&y=%2F", "Basic bWU6c2VjcmV0")]


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_a_server_that_sends_a_byte_now_and_then_is_given_up_in_time(first):
    with server(lambda handler: drip(handler, first)) as url:
        start = time.monotonic()
        with pytest.raises(ValueError, match="cannot fetch .*it took too long"):
            download(url, True, seconds=0.4)
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("told", [True, False])
def test_a_body_that_is_too_large_is_not_read_to_its_end(told, monkeypatch):
    monkeypatch.setattr(opening, "MAX_BYTES", 10**6)
    sent = []

    def respond(handler):
        answer(handler, **({"Content_Length": str(10**8)} if told else {}))
        for _ in range(100):
            handler.wfile.write(bytes(10**6))
            sent.append(1)

    with server(respond) as url, pytest.raises(ValueError, match="more than 1 MB"):
        download(url, True)
    assert len(sent) < 50


@pytest.mark.parametrize(
    "respond, reason",
    [
        (lambda h: answer(h, status=302, Location=h.path + "x"), "more than 5 redirects"),
        (lambda h: answer(h, status=302, Location="file:///etc/passwd"), "want http"),
        (lambda h: answer(h, status=301, Location=f"http://localhost:{h.server.server_port}/"), "no public address"),
        (lambda h: answer(h, status=302, Location="http://[fe80::1]/"), "link-local"),
        (lambda h: answer(h, status=404), "answers 404"),
        (lambda h: answer(h, b"abc", Content_Length="5"), "ended after 3 of 5 bytes"),
        (lambda h: answer(h, b"abc", Content_Encoding="gzip"), "compresses"),
        (lambda h: h.wfile.write(b"\0\xff\n\n"), "no proper answer"),
    ],
)
def test_what_is_wrong_is_said_and_the_url_named(respond, reason):
    with server(respond) as url, pytest.raises(ValueError, match=f"cannot fetch {url}.*{reason}"):
        download(url + "/a", True, seconds=5)


def test_redirects_within_a_host_are_followed():
    hops = {"/a": "/b", "/b": "c", "/c": None}

    def respond(handler):
        follow = hops[handler.path]
        answer(handler, b"there", *([302] if follow else []), **({"Location": follow} if follow else {}))

    with server(respond) as url:
        assert download(url + "/a", True) == b"there"


def test_addresses_that_are_not_public_are_refused_in_every_spelling(monkeypatch):
    def never(*arguments):
        raise AssertionError("connected")

    monkeypatch.delenv(opening.ALLOW_LOCAL, raising=False)
    monkeypatch.setattr(opening._Connection, "connect", never)
    for host in (
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "localhost",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "10.255.0.1",
        "0.0.0.0",
    ):
        with pytest.raises(ValueError, match="no public address"):
            download(f"http://{host}:1/x")
    for allowed in (True, False):
        with pytest.raises(ValueError, match="link-local"):
            download("http://[fe80::1]:1/x", allowed)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    found = [(socket.AF_INET, 1, 6, "", (address, 80)) for address in ("8.8.8.8", "192.168.1.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    with pytest.raises(ValueError, match="192.168.1.1, no public address"):
        download("http://example.com/")


def test_the_name_is_looked_up_once_and_proxies_are_left_alone(monkeypatch):
    """Else a server could give another address the second time."""
    calls = []
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: calls.append(a) or look_up(*a, **o))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with server(lambda handler: answer(handler, b"x")) as url:
        assert download(url.replace("127.0.0.1", "localhost"), True) == b"x"
    assert len([call for call in calls if call[0] == "localhost"]) == 1


@pytest.mark.parametrize(
    "url", ["http:///x", "http://a b/", "http://x:99999/", "http://\0/", "https://", "http://[1/"]
)
def test_what_is_no_url_is_said(url):
    with pytest.raises(ValueError, match="cannot fetch"):
        download(url)


def test_public_addresses():
    assert is_public("93.184.216.34") and is_public("2606:4700:4700::1111")
    assert not any(map(is_public, ("64:ff9b::7f00:1", "fd00::1", "100.64.0.1", "224.0.0.1", "::", "198.18.0.1")))
