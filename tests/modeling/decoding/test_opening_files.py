"""FIFOs, sockets, devices and folders are refused without being opened."""

import os
import socket

import pytest

from hf_clip_variants.modeling.decoding.opening import check_regular, open_regular, read_regular


@pytest.fixture(params=["FIFO", "socket", "device", "folder"])
def other_file(request, tmp_path):
    path = tmp_path / "1.png"
    if request.param == "FIFO":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            yield path, request.param
        return
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    yield path, request.param


def test_what_is_no_regular_file_is_named_and_not_opened(other_file, monkeypatch):
    path, kind = other_file
    monkeypatch.setattr(os, "open", lambda *arguments, **options: pytest.fail("opened"))
    for read in (check_regular, open_regular, read_regular):
        with pytest.raises(OSError, match=f"{path.name}.*{kind}"):
            read(path)


def test_a_fifo_that_takes_a_files_place_is_seen_after_opening(tmp_path, monkeypatch):
    path = tmp_path / "1.png"
    os.mkfifo(path)
    monkeypatch.setattr("hf_clip_variants.modeling.decoding.opening.check_regular", lambda path: None)
    with pytest.raises(OSError, match="a FIFO"):
        open_regular(path)


def test_regular_files_and_links_to_them_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    assert read_regular(tmp_path / "b") == b"abc"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "c")
