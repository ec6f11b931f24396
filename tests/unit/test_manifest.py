"""A manifest is believed only as far as it has been checked, and stays small."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from trainer.errors import CheckpointMismatch, DamagedCheckpoint
from trainer.records.manifest import (
    LogicalTensor,
    Manifest,
    RankFile,
    decode,
    digest_of,
    encode,
    rank_file_name,
)

TENSORS = (
    LogicalTensor("embed.weight", (97, 11), ("exp_avg", "exp_avg_sq", "master")),
    LogicalTensor("norm.weight", (11,), ("master", "momentum_buffer")),
    LogicalTensor("scale", (), ("exp_avg", "exp_avg_sq", "master")),
)
MANIFEST = Manifest(
    step=100,
    world_size=2,
    attempt=3,
    run_hash="c0ffee",
    parent_step=50,
    created=1.5e9,
    rule="spans",
    tensors=TENSORS,
    files=(
        RankFile(rank_file_name(0), 8192, "0" * 32, ((0, 500), (600, 700))),
        RankFile(rank_file_name(1), 8192, "f" * 32, ((500, 600), (700, 1079))),
    ),
    training={"step": 100, "tokens_seen": 12345, "last_loss": 2.5, "cursor": {"next": 800}},
    origin={"engine": "zero2"},
)


def sealed(fields: dict[str, Any]) -> bytes:
    """A manifest with a right digest over whatever it says."""
    body = json.dumps(fields)[:-1].encode() + b","
    return body + f'"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def fields_of(manifest: Manifest) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(encode(manifest))
    del fields["sha256"]
    return fields


def test_what_was_written_is_what_is_read() -> None:
    assert decode(encode(MANIFEST)) == MANIFEST
    first = replace(MANIFEST, parent_step=None, rule="even")
    assert decode(encode(first)) == first


def test_it_is_plain_json_with_a_line_for_each_tensor_and_file() -> None:
    text = encode(MANIFEST).decode()
    assert json.loads(text)["step"] == 100
    assert len([line for line in text.splitlines() if "rank-0000" in line]) == 2


def test_a_rank_takes_at_most_200_bytes_in_the_largest_of_worlds() -> None:
    """1.6e12 parameters on 16,384 ranks, three spans each."""
    world_size, elements = 16384, 1_600_000_000_000
    huge = (LogicalTensor("w", (elements,), ("master",)),)
    span = elements - 6
    spans = tuple((span + i, span + i + 1) for i in (0, 2, 4))
    files = tuple(
        RankFile(rank_file_name(rank), 999_999_999_999, "f" * 32, spans)
        for rank in range(world_size)
    )
    one = replace(MANIFEST, tensors=huge, world_size=1, files=files[:1])
    all_of_them = replace(one, world_size=world_size, files=files)
    grown = len(encode(all_of_them)) - len(encode(one))
    assert grown / (world_size - 1) <= 200


def test_a_flipped_bit_anywhere_is_refused() -> None:
    content, rng = encode(MANIFEST), random.Random(1)
    for at in range(len(content)):
        broken = bytearray(content)
        broken[at] ^= 1 << rng.randrange(8)
        with pytest.raises(DamagedCheckpoint):
            decode(bytes(broken))


def test_cut_off_anywhere_it_is_refused() -> None:
    content = encode(MANIFEST)
    for end in range(len(content)):
        with pytest.raises(DamagedCheckpoint):
            decode(content[:end])
    with pytest.raises(DamagedCheckpoint):
        decode(content + b" ")


def test_its_digest_identifies_a_checkpoint() -> None:
    other = replace(MANIFEST, training={"step": 101})
    assert digest_of(encode(MANIFEST)) != digest_of(encode(other))
    assert digest_of(b"no manifest") == ""


def test_a_newer_format_is_no_damage_and_says_what_to_do() -> None:
    newer = fields_of(MANIFEST) | {"format": 2, "files": "of another shape altogether"}
    with pytest.raises(
        CheckpointMismatch, match=r"format 2 is newer .* install the version"
    ) as told:
        decode(sealed(newer))
    assert told.value.exit_code == 78


def test_fields_that_this_version_does_not_know_are_ignored() -> None:
    assert decode(sealed(fields_of(MANIFEST) | {"colour": "green"})) == MANIFEST


HOSTILE: dict[str, tuple[str, Any]] = {
    "another file's name": ("name", "somebody-else"),
    "format 0": ("format", 0),
    "format as text": ("format", "1"),
    "negative step": ("step", -1),
    "step as bool": ("step", True),
    "step as fraction": ("step", 1.5),
    "step beyond 2^53": ("step", 2**53 + 1),
    "no world": ("world_size", 0),
    "more ranks than files": ("world_size", 10**15),
    "unknown rule": ("rule", "any"),
    "training as list": ("training", []),
    "no tensors": ("tensors", None),
    "no files": ("files", {}),
    "attempt missing": ("attempt", None),
    "kinds with a path": ("kinds", [["../x"]]),
    "kinds unsorted": ("kinds", [["b", "a"]]),
    "created as text": ("created", "now"),
    "run hash as number": ("run_hash", 5),
    "long run hash": ("run_hash", "a" * 2000),
}
HOSTILE_FILES: dict[str, list[Any]] = {
    "path up": ["../../etc/passwd", 1, "0" * 32, []],
    "absolute path": ["/etc/passwd", 1, "0" * 32, []],
    "path inside": ["a/rank-00000.safetensors", 1, "0" * 32, []],
    "newline": ["rank-00000.safetensors\n", 1, "0" * 32, []],
    "another rank's": ["rank-00001.safetensors", 1, "0" * 32, []],
    "negative size": ["rank-00000.safetensors", -1, "0" * 32, []],
    "huge size": ["rank-00000.safetensors", 2**60, "0" * 32, []],
    "short digest": ["rank-00000.safetensors", 1, "0", []],
    "odd spans": ["rank-00000.safetensors", 1, "0" * 32, [1]],
    "spans backwards": ["rank-00000.safetensors", 1, "0" * 32, [5, 3]],
    "spans beyond the end": ["rank-00000.safetensors", 1, "0" * 32, [0, 10**6]],
    "too many spans": ["rank-00000.safetensors", 1, "0" * 32, [0, 1, 2, 3, 4, 5, 6, 7]],
    "a field too many": ["rank-00000.safetensors", 1, "0" * 32, [], 0],
}
HOSTILE_TENSORS: dict[str, list[Any]] = {
    "negative dimension": ["w", [-1], 0],
    "too many elements": ["w", [2**30, 2**30], 0],
    "65 dimensions": ["w", [1] * 65, 0],
    "no such kinds": ["w", [1], 7],
    "nameless": ["", [1], 0],
    "control characters": ["a\x1b[2Jb", [1], 0],
    "name as number": [5, [1], 0],
    "name of 2000": ["a" * 2000, [1], 0],
    "twice the same": ["norm.weight", [11], 0],
}


@pytest.mark.parametrize(("key", "value"), HOSTILE.values(), ids=HOSTILE)
def test_a_field_that_cannot_be_is_refused(key: str, value: Any) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json: "):
        decode(sealed(fields_of(MANIFEST) | {key: value}))


@pytest.mark.parametrize("row", HOSTILE_FILES.values(), ids=HOSTILE_FILES)
def test_a_file_that_cannot_be_is_refused(row: list[Any]) -> None:
    fields = fields_of(MANIFEST)
    fields["files"][0] = row
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json: "):
        decode(sealed(fields))


@pytest.mark.parametrize("row", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS)
def test_a_tensor_that_cannot_be_is_refused(row: list[Any]) -> None:
    fields = fields_of(MANIFEST)
    fields["tensors"][0] = row
    with pytest.raises(DamagedCheckpoint, match=r"manifest\.json: "):
        decode(sealed(fields))


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"step":' + b"9" * 5000, b'{"a":NaN', b"[1", b'{"a":"\xff"']
)
def test_sealed_nonsense_is_refused(body: bytes) -> None:
    content = body + b",\n"
    seal = f'"sha256":"{hashlib.sha256(content).hexdigest()}"}}\n'.encode()
    with pytest.raises(DamagedCheckpoint):
        decode(content + seal)


def test_what_is_not_finite_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(replace(MANIFEST, training={"loss": float("inf")}))
