"""Access tokens in files that are about to become public."""

import re

from huggingface_hub import get_token

from ncpl.hub.files import Files

TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


def check_secrets(files: Files, token: str | None = None) -> None:
    """Refuses files that hold an access token.

    Args:
        files: what is to be pushed.
        token: the token of the push; the one you are logged in with when absent.

    Raises:
        ValueError: the file that holds one.
    """
    secret = (token or get_token() or "").encode()
    for path, content in files.items():
        if path.endswith((".safetensors", ".parquet", ".png")):
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if TOKEN.search(data) or (secret and secret in data):
            raise ValueError(f"{path}: holds an access token, which would become public; remove it, nothing was pushed")
