"""The table is checked as a table; everything else runs against a server on this machine."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("compressai")

from svdrd.__main__ import main
from svdrd.compress.files import sha256
from svdrd.compress.images import data_sets
from svdrd.compress.images.data_sets import DATA_SETS, DownloadFailed, Source, get
from tests.conftest import PHOTOGRAPHS

CONTENT = bytes(range(256)) * 10_000


class Server:
    """Serves ``files``; breaks off after ``breaks_after`` bytes of an answer; notes the ranges it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"a.bin": CONTENT}
        self.breaks_after: int | None = None
        self.knows_ranges = True
        self.asked: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.headers["Range"])
                content = server.files.get(self.path[1:])
                if content is None:
                    self.send_error(404)
                    return
                start = 0
                if self.headers["Range"] and server.knows_ranges:
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: server.breaks_after])

            def log_message(self, *_args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def source(self, name: str = "a.bin", folder: str = "") -> Source:
        content = self.files.get(name, CONTENT)
        url = f"http://127.0.0.1:{self.http.server_port}/{name}"
        return Source("train", url, len(content), hashlib.sha256(content).hexdigest(), folder)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def test_a_file_arrives_whole_and_once(server: Server, tmp_path: Path):
    get(server.source(), tmp_path / "data")
    get(server.source(), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.bin"]
    assert (tmp_path / "data" / "a.bin").read_bytes() == CONTENT
    assert server.asked == [None]


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path):
    server.breaks_after = 1_000_000
    with pytest.raises(DownloadFailed, match=r"1000000 of 2560000 bytes are kept, the same command goes on there"):
        get(server.source(), tmp_path)
    assert not (tmp_path / "a.bin").exists()
    server.breaks_after = None
    get(server.source(), tmp_path)
    assert server.asked == [None, "bytes=1000000-"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    server.knows_ranges = False
    get(server.source(), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_complete_part_is_not_asked_for_again(server: Server, tmp_path: Path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    get(server.source(), tmp_path)
    assert server.asked == []
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [b"", b"y" * 1000, b"y" * 3_000_000])
def test_damaged_content_never_gets_its_name(server: Server, tmp_path: Path, kept: bytes):
    source = server.source()
    server.files["a.bin"] = CONTENT[:-1] + b"?"
    if kept:
        (tmp_path / "a.bin.part").write_bytes(kept)
    with pytest.raises(DownloadFailed, match=f"its SHA-256 is .*, expected is {source.sha256}"):
        get(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path):
    (tmp_path / "a.bin").write_bytes(b"old")
    get(server.source(), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, name)
    return stream.getvalue()


def test_an_archive_is_unpacked_and_removed(server: Server, tmp_path: Path):
    server.files["t.zip"] = archive("DIV2K_train_HR/0001.png", "DIV2K_train_HR/0002.png", "__MACOSX/._0001.png")
    get(server.source("t.zip", "train"), tmp_path)
    get(server.source("t.zip", "train"), tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "train/0001.png", "train/0002.png",
    ]  # fmt: skip
    assert server.asked == [None]


def test_an_archive_cannot_write_elsewhere(server: Server, tmp_path: Path):
    server.files["t.zip"] = archive("../../evil.png", "good.png")
    get(server.source("t.zip", "train"), tmp_path / "a" / "b")
    assert [
        path for path in tmp_path.rglob("evil.png") if not path.is_relative_to(tmp_path / "a" / "b" / "train")
    ] == []


def test_what_is_half_unpacked_is_unpacked_anew(server: Server, tmp_path: Path):
    server.files["t.zip"] = archive("x/0001.png", "x/0002.png")
    (tmp_path / "train.unpacking" / "x").mkdir(parents=True)
    (tmp_path / "train.unpacking" / "x" / "half.png").touch()
    get(server.source("t.zip", "train"), tmp_path)
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["0001.png", "0002.png"]


def test_not_there(server: Server, tmp_path: Path):
    with pytest.raises(DownloadFailed, match="the server answers 404"):
        get(server.source("missing.bin"), tmp_path)


def run(server: Server, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    sources = (
        server.source(),
        Source("valid", server.source().url.replace("a.bin", "b.bin"), 3, sha256_of_bytes(b"abc")),
    )
    server.files["b.bin"] = b"abc"
    monkeypatch.setitem(data_sets.DATA_SETS, "div2k", sources)
    return main(["data", "get", *argv])


def sha256_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_command(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert run(server, monkeypatch, "div2k") == 0
    assert capsys.readouterr() == ("div2k is in data/div2k\n", "")
    assert sorted(path.name for path in (tmp_path / "data" / "div2k").iterdir()) == ["a.bin", "b.bin"]
    assert run(server, monkeypatch, "div2k", "-o", "valid alone", "--only", "valid") == 0
    assert [path.name for path in (tmp_path / "valid alone").iterdir()] == ["b.bin"]
    assert run(server, monkeypatch, "div2k", "--only", "tests") == 2
    assert "--only tests: div2k has train, valid" in capsys.readouterr().err


def test_offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    server.http.shutdown()
    server.http.server_close()
    assert run(server, monkeypatch, "div2k", "-o", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "cannot be reached ([Errno 111] Connection refused); without internet, fetch it elsewhere and put it at"
        in error
    )
    assert str(tmp_path / "a.bin.part") in error


def test_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """/dev/full is a disk without space."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "a.bin.part").symlink_to("/dev/full")
    with pytest.raises(DownloadFailed, match=f"{tmp_path}: No space left on device"):
        get(server.source(), tmp_path)


def test_output_that_is_a_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    assert run(server, monkeypatch, "div2k", "-o", str(tmp_path / "file")) == 2


def test_the_table():
    assert {name: len(sources) for name, sources in DATA_SETS.items()} == {"kodak": 24, "div2k": 2, "clic": 3}
    for sources in DATA_SETS.values():
        assert len({source.url for source in sources}) == len({source.sha256 for source in sources}) == len(sources)
        for source in sources:
            assert source.url.startswith("https://")
            assert len(bytes.fromhex(source.sha256)) == 32
            assert source.size > 0


def test_kodak_is_kodak(kodak: list[Path]):
    assert PHOTOGRAPHS in kodak[0].parents
    for path, source in zip(kodak, DATA_SETS["kodak"], strict=True):
        assert (path.name, path.stat().st_size, sha256(path)) == (source.name, source.size, source.sha256)
