"""Access tokens in files that are about to become public.

The patterns are those of detect-secrets, which knows the tokens of some twenty providers, and a few that it lacks. They
are searched for in all printable text of a file, whatever kind of file it is: in ASCII, in UTF-16, and in the
compressed text of PNG images.
"""

import re
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector
from huggingface_hub import get_token

from ncpl.hub.files import Files

OTHERS = {
    "Hugging Face token": r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{30,}",
    "Anthropic API key": r"sk-ant-[A-Za-z0-9_-]{20,}",
    "OpenAI project key": r"sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{40,}",
    "Google API key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    "GitHub fine-grained token": r"github_pat_[A-Za-z0-9_]{50,}",
    "Weights & Biases key": r"wandb_v\d+_[A-Za-z0-9_]{40,}",
    "NPM token": r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}",
}
"""Patterns that detect-secrets does not have."""
NO_TOKENS = ("Public IP (ipv4)",)
"""What detect-secrets also reports and nobody has to keep secret."""
CHUNK = 2**24
"""Bytes of a file that are searched at a time; they overlap by `OVERLAP`, more than any token is long."""
OVERLAP = 2**14
PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = 2**20
"""Bytes of a PNG's compressed text that are read."""

# Runs of printable characters as long as the shortest token, in ASCII or UTF-8, and in UTF-16 of either byte order.
_ASCII = re.compile(rb"[\x20-\x7e]{16,}")
_UTF16 = re.compile(rb"(?:[\x20-\x7e]\x00){16,}|(?:\x00[\x20-\x7e]){16,}")


def check_secrets(files: Files, token: str | None = None) -> None:
    """Refuses files that hold an access token.

    Args:
        files: what is to be pushed.
        token: the token of the push; the one you are logged in with when absent.

    Raises:
        ValueError: names each file that holds one, and its kind; never the token.
    """
    own = token or get_token()
    found = []
    for path, content in files.items():
        kinds = {kind for text in _texts(content) for kind in _kinds(text, own)}
        found += [f"{path} holds an access token ({', '.join(sorted(kinds))})"] if kinds else []
    if found:
        more = f"; and {len(found) - 3} more files" if len(found) > 3 else ""
        raise ValueError(f"{'; '.join(found[:3])}{more}; remove it, nothing was pushed")


def _kinds(text: str, own: str | None) -> Iterator[str]:
    if own and own in text:
        yield "your own"
    for kind, pattern in _patterns():
        if pattern.search(text):
            yield kind


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Kind of token -> pattern; those that guess from entropy or from words such as `token` are not among them."""
    found = [(kind, re.compile(pattern)) for kind, pattern in OTHERS.items()]
    detectors: dict[str, Any] = get_mapping_from_secret_type_to_class()
    for kind, detector in detectors.items():
        if issubclass(detector, RegexBasedDetector) and kind not in NO_TOKENS:
            found += [(kind, pattern) for pattern in detector.denylist]
    return found


def _texts(content: Path | bytes) -> Iterator[str]:
    """All printable text of a file, a piece at a time."""
    for chunk in _chunks(content):
        if text := b"\n".join(_ASCII.findall(chunk)):
            yield text.decode("ascii")
        if wide := b"\n".join(run.replace(b"\x00", b"") for run in _UTF16.findall(chunk)):
            yield wide.decode("ascii")
        if chunk.startswith(PNG):
            yield from _png_texts(chunk)


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        before = b""
        while chunk := file.read(CHUNK):
            yield before + chunk
            before = chunk[-OVERLAP:]


def _png_texts(data: bytes) -> Iterator[str]:
    """The compressed text of an image (`zTXt` and `iTXt` chunks); plain text is found without."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        at += length + 12
        if kind in (b"zTXt", b"iTXt") and (start := body.find(b"\x78")) >= 0:
            # Where the compressed part starts depends on names of any length: each possible start is tried.
            while start >= 0:
                try:
                    yield zlib.decompressobj().decompress(body[start:], PNG_TEXT).decode("latin-1")
                    break
                except zlib.error:
                    start = body.find(b"\x78", start + 1)
