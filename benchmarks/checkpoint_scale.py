"""What a checkpoint's bookkeeping costs with thousands of ranks that are not there.

    python -m benchmarks.checkpoint_scale

Synthetic ranks of a 70 B model: every rank's row is made as its writer would; then rank 0's part of
a commit is done for real: gather rows -> manifest -> publish (written, fsynced, renamed), and a
reader's: read, decode, find the files of a share. The network is not measured, nor the ranks' own
files. Promised: a commit of 16,384 ranks under 10 s, a manifest of at most 200 bytes a rank beside
its tensors, nothing O(ranks^2).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

from trainer.checkpoint.agreement import agree
from trainer.checkpoint.contents import Contents
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.format import Identity, encode_header, num_chunks
from trainer.checkpoint.layout import FileIndex, even_share, positions, spans
from trainer.checkpoint.orders import Publish, publish
from trainer.checkpoint.saving import SaveSettings
from trainer.dist.world import Alone
from trainer.records.fragment import Fragment
from trainer.records.manifest import MANIFEST_NAME, LogicalTensor, decode, rank_file_name
from trainer.storage.local import LocalStorage

KINDS = ("exp_avg", "exp_avg_sq", "master")
LIMIT_S = 10.0
_HEAD = (
    f"{'ranks':>6} {'rule':<6}{'rows MB':>8}{'decide s':>9}{'publish s':>10}{'manifest MB':>12}"
    f"{'B/rank':>7}{'decode s':>9}{'index s':>8}{'lookup s':>9}{'files':>6}{'header kB':>10}"
)


def tensors_of_70b() -> tuple[LogicalTensor, ...]:
    """Llama 3 70B: 80 layers of nine tensors, embedding, head and norm."""
    block = {
        "self_attn.q_proj": (8192, 8192), "self_attn.k_proj": (1024, 8192),
        "self_attn.v_proj": (1024, 8192), "self_attn.o_proj": (8192, 8192),
        "mlp.gate_proj": (28672, 8192), "mlp.up_proj": (28672, 8192),
        "mlp.down_proj": (8192, 28672), "input_layernorm": (8192,),
        "post_attention_layernorm": (8192,),
    }  # fmt: skip
    rows = [(f"model.layers.{i}.{n}.weight", s) for i in range(80) for n, s in block.items()]
    ends = [("model.embed_tokens.weight", (128256, 8192)), ("lm_head.weight", (128256, 8192))]
    return tuple(LogicalTensor(n, s, KINDS) for n, s in [*rows, *ends, ("model.norm", (8192,))])


@dataclass(frozen=True)
class Figures:
    """Seconds and bytes. `shard_*`: of one rank's own table and header."""

    ranks: int
    rule: str
    rows_bytes: int
    decide_s: float
    publish_s: float
    manifest_bytes: int
    decode_s: float
    index_s: float
    lookup_s: float
    files_opened: int
    shard_entries: int
    shard_header_bytes: int
    shard_header_s: float

    @property
    def commit_s(self) -> float:
        return self.decide_s + self.publish_s

    @property
    def bytes_a_rank(self) -> float:
        """Beside what a manifest of one rank has: tensors, origin."""
        return self.manifest_bytes / self.ranks


def measure(root: Path, ranks: int, *, rule: str) -> Figures:
    tensors = tensors_of_70b()
    starts = positions(t.elements for t in tensors)
    shares = [even_share(starts[-1], rank, ranks) for rank in range(ranks)]
    texts = [
        json.dumps({"value": [4 * 3 * (b - a), _digest(rank), [[a, b]] if rule == "spans" else []]})
        for rank, (a, b) in enumerate(shares)
    ]
    folders = StepFolders(LocalStorage(), root / f"{ranks}-{rule}")
    incoming = folders.enter(1, 1)
    for rank in range(ranks):  # the ranks' own files, empty here
        (incoming / rank_file_name(rank)).touch()
    contents = Contents((), (), tensors, "spans" if rule == "spans" else "even")
    orders: list[Publish] = []
    started = time.perf_counter()
    agree(_Replay(texts), lambda: json.loads(texts[0])["value"], _decide(contents, orders))
    decide_s = time.perf_counter() - started
    publish_s = _timed(lambda: publish(folders, orders[0]))
    content = (folders.step(1) / MANIFEST_NAME).read_bytes()
    decode_s = _timed(lambda: decode(content))
    manifest = decode(content)
    index_s = _timed(lambda: FileIndex(manifest))
    index = FileIndex(manifest)
    wanted = _fragments(tensors, starts, ranks // 2, ranks, rule)
    found: set[int] = set()
    lookup_s = _timed(lambda: [found.update(index.files(f.name, f.start, f.stop)) for f in wanted])
    header: list[bytes] = []
    header_s = _timed(lambda: header.append(_header(wanted, ranks)))
    return Figures(
        ranks=ranks,
        rule=rule,
        rows_bytes=sum(map(len, texts)),
        decide_s=decide_s,
        publish_s=publish_s,
        manifest_bytes=len(content),
        decode_s=decode_s,
        index_s=index_s,
        lookup_s=lookup_s,
        files_opened=len(found),
        shard_entries=len(wanted),
        shard_header_bytes=len(header[0]),
        shard_header_s=header_s,
    )


class _Replay(Alone):
    """A world whose ranks have all said what they wrote."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self._texts = texts

    def gather(self, text: str) -> list[str]:
        return self._texts


def _decide(contents: Contents, orders: list[Publish]):  # type: ignore[no-untyped-def]
    settings = SaveSettings(
        attempt=1,
        run_hash="",
        keep_last=2,
        keep_every=0,
        origin={},
        chunk_bytes=1 << 20,
        owner=None,
    )

    def decide(rows: list[object]) -> int:
        orders.append(settings.publication(contents, 1, training="{}", parent=None, rows=rows))
        return len(rows)

    return decide


def _fragments(
    tensors: tuple[LogicalTensor, ...], starts: list[int], rank: int, ranks: int, rule: str
) -> list[Fragment]:
    """What one rank holds, as ZeRO 1 and 2 (spans) or ZeRO 3 (even) cut."""
    held = []
    first, last = even_share(starts[-1], rank, ranks)
    for tensor, at in zip(tensors, starts, strict=False):
        a, b = max(first - at, 0), min(last - at, tensor.elements)
        if rule == "even":
            a, b = even_share(tensor.elements, rank, ranks)
        held += [Fragment(tensor.name, k, tensor.shape, a, b) for k in KINDS if a < b]
    if rule == "spans":
        assert len(spans(held, dict(zip((t.name for t in tensors), starts, strict=False)))) == 1
    return held


def _header(fragments: list[Fragment], ranks: int) -> bytes:
    total = sum(4 * f.length for f in fragments)
    sums = [0] * num_chunks(total, 1 << 20)
    identity = Identity(1, 0, ranks)
    return encode_header(
        identity, fragments, algorithm="crc32c", chunk_bytes=1 << 20, checksums=sums
    )


def _digest(rank: int) -> str:
    return hashlib.sha256(str(rank).encode()).hexdigest()[:32]


def _timed(act: object) -> float:
    started = time.perf_counter()
    act()  # type: ignore[operator]
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="*", default=[1024, 4096, 16384])
    parser.add_argument("--folder", type=Path, help="on the disk under test")
    given = parser.parse_args()
    elements = sum(prod(t.shape) for t in tensors_of_70b())
    print(f"{elements / 1e9:.1f} G parameters, load {os.getloadavg()[0]:.1f}")
    print(_HEAD)
    slowest = 0.0
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        for ranks in given.ranks:
            for rule in ("even", "spans"):
                f = measure(Path(scratch), ranks, rule=rule)
                slowest = max(slowest, f.commit_s)
                print(f"{ranks:>6} {rule:<6}{f.rows_bytes / 1e6:>8.2f}{f.decide_s:>9.3f}"
                      f"{f.publish_s:>10.3f}{f.manifest_bytes / 1e6:>12.2f}{f.bytes_a_rank:>7.0f}"
                      f"{f.decode_s:>9.3f}{f.index_s:>8.3f}{f.lookup_s:>9.4f}{f.files_opened:>6}"
                      f"{f.shard_header_bytes / 1e3:>10.1f}")  # fmt: skip
    print(
        f"promise: a commit within {LIMIT_S:.0f} s: {'kept' if slowest < LIMIT_S else 'NOT kept'}"
    )
    sys.exit(slowest >= LIMIT_S)


if __name__ == "__main__":
    main()
