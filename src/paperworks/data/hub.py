"""Hugging Face data sets by name: "hf:owner/name" or "hf:owner/name:configuration"."""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator

from paperworks.data.listing import TEST_NAMES, Listing, Split, choose_parts
from paperworks.data.objects import list_arrow
from paperworks.errors import InputError


def list_hub(
    source: str, *, split: Split | None, channels: int, image_column: str | None = None, label_column: str | None = None
) -> Listing:
    """Only the part that is asked for is downloaded, or taken from the hub's cache."""
    name, _, configuration = source.removeprefix("hf:").partition(":")
    try:
        import datasets as hf
    except ImportError:
        raise InputError(f"{source}: the datasets library is not installed: pip install 'paperworks[hub]'") from None
    try:
        with _offline_when_unreachable():
            parts = {part: part for part in hf.get_dataset_split_names(name, configuration or None)}
            chosen = choose_parts(parts, split)
            loaded = [hf.load_dataset(name, configuration or None, split=part) for part in chosen or parts]
    except Exception as error:  # the client raises many kinds: no network, no such name, not logged in, wrong configuration
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{source} cannot be had from the hub ({reason}): check the name, the network and your login, or give a folder"
        ) from None
    listing = list_arrow(loaded, name=source, channels=channels, image_column=image_column, label_column=label_column)
    only_test = len(parts) == 1 and next(iter(parts)) in TEST_NAMES
    listing.own_split = chosen is not None or (only_test and split == "test")
    return listing


@contextlib.contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    """Where the hub's name does not even resolve, the client would try for half a minute; offline it looks into its cache
    at once."""
    import huggingface_hub.constants as hub

    host = urllib.parse.urlparse(hub.ENDPOINT).hostname
    before = hub.HF_HUB_OFFLINE
    try:
        if host and not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
