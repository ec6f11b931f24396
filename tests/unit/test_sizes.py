"""Sizes as people read and write them."""

from __future__ import annotations

import pytest

from trainer.records.sizes import bytes_of, size_text


def test_a_size_is_shown_in_the_unit_it_is_of() -> None:
    shown = [size_text(n) for n in (0, 1023, 1536, 999_999, 2**20, 2**30 - 1, 3 << 30, 5 << 50)]
    assert shown == [
        "0 B", "1023 B", "1.5 KiB", "976.6 KiB", "1.0 MiB", "1.0 GiB", "3.0 GiB", "5,120.0 TiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80 * 10**9), ("24GiB", 24 * 2**30), ("1.5T", 1.5e12), ("512", 512), ("2 mib", 2**21)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "lots", "0GB", "-3GB", "1.2.3GB", "80 apples", ".", "GB"])
def test_what_is_no_size_is_none(text: str) -> None:
    assert bytes_of(text) is None
