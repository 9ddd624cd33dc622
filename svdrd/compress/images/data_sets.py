"""Data sets of photographs: their official addresses and checksums, and fetching them.

An interrupted download goes on where it stopped; a file appears under its name only when it is complete and its
checksum is right; what is there already is not fetched again.
"""

import http.client
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from svdrd.compress.errors import BadInput, Stopped
from svdrd.compress.files import sha256

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Source:
    """One file of a data set: where it is, how long it is, its SHA-256; ``part`` is what ``--only`` names.

    A ``.zip`` is unpacked into ``folder`` and removed.
    """

    part: str
    url: str
    size: int
    sha256: str
    folder: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


ETH = "https://data.vision.ee.ethz.ch/cvl"
# Nobody publishes checksums beside these files. Kodak: computed from a copy whose SHA-256 equal those of the originals.
# DIV2K and CLIC: size and SHA-256 as TensorFlow Datasets recorded them (url_checksums/div2k.txt, clic.txt); those
# archives were not fetched here.
KODAK_SHA256 = (
    (736501, "a56e27cbf5f843c048b6af1d6e090760e9c92fadba88b7dee0205918a37523bd"),
    (617995, "4f4b74a79237e311d72cad958237b5f7088d8bce1c82305ebefe1a70e3022dfd"),
    (502888, "e25ca1ff2f0c0cb5fdfd5f9b0a0bb21ac4c3de3c84a67f35b09a85d3306249db"),
    (637432, "e3b946107c5d3441c022f678d0c3caf1e224d81b1604ba840a4f88e562de61aa"),
    (785610, "10349e963c5c813d327852f82c1795fa4148d69fedffc4c589bee458e3ac3d53"),
    (618959, "363510303b715d4cbc384e1ce227e466b613a09e1b71ae985882bf8e7fbd9b18"),
    (566322, "b77d3f006f42414bb242222e0482e750c0fb9e5ee8d4bed2f6f11c5605fe54a4"),
    (788470, "ba23983c76b4832ee0e8af0592664756841a16779acd69f792e268fb6d13d6e7"),
    (582899, "6a4361c2fc194feb4edaa9f9a4a0620fb9943e460ac7fdf037fb0f6dd6607a7d"),
    (593463, "9dfb70f5867c29ff9ed6313683f19b3d867849e40fbc0c4c54a4a89df341cf23"),
    (621023, "7936814b58b5387fce2e4e2488b4ec830dadd95fa9520f358ddb30990b50f2b6"),
    (531024, "d78c37c2f04f23761ed2367dd77e2db584ddd4c3950833fecf89f199a8126980"),
    (822712, "bc34a3ce58dea09dce1704c997171602de90cb34d0c8503a988b77f473d39b08"),
    (692201, "55a94550ff18f3246c4074fd32b77b0c74447c26b6ad274d564d999c0450ba6e"),
    (612582, "7538cbb80cb9103606c48b806eae57d56c885c7f90b9b3be70a41160f9cbb683"),
    (534247, "a89c7268ccd4718ba424a99fc4643c572cf692ca6eae887185ceb4e9f11d2e54"),
    (602078, "37afcc89fbdcb76d9518e04b2fc011027e2f4cd14b3b2f83cefd721641a47c5b"),
    (780947, "1a9258c365988961d87a0598725b609139c303ad48a5aad6c503c3b1a87849aa"),
    (671476, "b7450b264b1b0a411390d8931b112c27905a992520fc90569dc4b920aa32bbdc"),
    (492462, "3b46c71e3b92a563820ba32936be8330c586c41f938efd94be938386aae4328a"),
    (637051, "ac958597c82073f6bb65129c68f72b651db5b9efd82e11547d07350214bc268b"),
    (701970, "1cee58eb1f2d9c7ebb254d208a03c783ce6cf2c4d8c2cf45e235dd23b4ce1b29"),
    (557596, "e3111a2fd4da24af15d6459ef9eacfe54106b38e27b4a21821b75c3f5d2d5baf"),
    (706397, "1071c68372cc5a01435c2c225a5cf7d4bb803846ec08bb6b3d6721b156d7cb96"),
)
DATA_SETS: dict[str, tuple[Source, ...]] = {
    "kodak": tuple(
        Source("all", f"https://r0k.us/graphics/kodak/kodak/kodim{number:02}.png", size, sha256)
        for number, (size, sha256) in enumerate(KODAK_SHA256, start=1)
    ),
    "div2k": (
        Source(
            "train",
            f"{ETH}/DIV2K/DIV2K_train_HR.zip",
            3530603713,
            "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
            "train",
        ),
        Source(
            "valid",
            f"{ETH}/DIV2K/DIV2K_valid_HR.zip",
            448993893,
            "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
            "valid",
        ),
    ),
    # CLIC 2020, professional.
    "clic": (
        Source(
            "train",
            f"{ETH}/clic/professional_train_2020.zip",
            2003385131,
            "54a2a684b5cbd0db91770a8695efb774fed1f612194fee68bceaf6b1c48e5d5f",
            "train",
        ),
        Source(
            "valid",
            f"{ETH}/clic/professional_valid_2020.zip",
            134834429,
            "00be38092ade2ab5163b65f7f6523d46c7bca147007f559adbb02c0afc236b7d",
            "valid",
        ),
        Source(
            "test",
            f"{ETH}/clic/test/CLIC2020Professional_test.zip",
            891643809,
            "857df244fc2bfa5da28d4c66bf0db16ee99bfc79eb807be8afa89cd507852884",
            "test",
        ),
    ),
}


class DownloadFailed(Stopped):
    """The network, the server or the disk failed (exit code 1); what has been fetched stays for the next call."""


def get(source: Source, folder: Path) -> None:
    """Makes ``source`` be in ``folder``, complete and checked, unpacked if it is a zip.

    Raises:
        BadInput: the folder cannot be made.
        DownloadFailed: unreachable, cut off, of another content than expected, or no space left.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--output {folder}: {error.strerror}; choose a folder that can be written to") from error
    is_zip = source.name.endswith(".zip")
    target = folder / source.folder if is_zip else folder / source.name
    if target.is_dir() if is_zip else target.is_file() and sha256(target) == source.sha256:
        return
    part = folder / f"{source.name}.part"
    try:
        fetch(source, part)
        if (found := sha256(part)) != source.sha256:
            part.unlink()
            raise DownloadFailed(
                f"{source.url}: its SHA-256 is {found}, expected is {source.sha256}; it was damaged on the way, or has "
                "changed at its source: try again, and if it stays so do not use it"
            )
        if is_zip:
            unpack(part, target)
            part.unlink()
        else:
            part.replace(target)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadFailed(_advice(source, folder, part, error)) from error


def fetch(source: Source, part: Path) -> None:
    """Appends to ``part`` what is missing of ``source``; begins anew where the server cannot go on in the middle."""
    have = part.stat().st_size if part.exists() else 0
    if have > source.size:
        part.unlink()
        have = 0
    if have == source.size:
        return
    request = urllib.request.Request(source.url, headers={"User-Agent": "svdrd"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        progress = tqdm(
            total=source.size, initial=have, desc=source.name, unit="B", unit_scale=True, disable=None, leave=False
        )
        with part.open("ab" if have else "wb") as file, progress:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if (size := part.stat().st_size) < source.size:
        raise http.client.IncompleteRead(b"", source.size - size)


def unpack(archive: Path, target: Path) -> None:
    """The files of ``archive`` in ``target``: all of them or none. A single folder at its top is left out."""
    temporary = target.with_name(target.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            names = [name for name in content.namelist() if not name.startswith("__MACOSX/")]
            content.extractall(temporary, names)
    except zipfile.BadZipFile as error:
        raise DownloadFailed(f"{archive}: no zip archive ({error}); remove it and try again") from error
    entries = list(temporary.iterdir())
    top = entries[0] if len(entries) == 1 and entries[0].is_dir() else temporary
    top.replace(target)
    shutil.rmtree(temporary, ignore_errors=True)


def _advice(source: Source, folder: Path, part: Path, error: Exception) -> str:
    have = part.stat().st_size if part.exists() else 0
    kept = f"{have} of {source.size} bytes are kept, the same command goes on there"
    if isinstance(error, urllib.error.HTTPError):
        return f"{source.url}: the server answers {error.code} {error.reason}; {kept}"
    if isinstance(error, urllib.error.URLError):
        return (
            f"{source.url}: cannot be reached ({error.reason}); without internet, fetch it elsewhere and put it at "
            f"{part}; {kept}"
        )
    if (
        isinstance(error, OSError)
        and error.strerror is not None
        and not isinstance(error, (TimeoutError, ConnectionError))
    ):
        return f"{folder}: {error.strerror}; {kept}"
    return f"{source.url}: the connection broke ({type(error).__name__}: {error}); {kept}"
