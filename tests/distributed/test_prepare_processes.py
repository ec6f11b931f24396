"""Preparation as processes: killed, in parallel, at the same time, and out of space."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.corpora import silent, tiny_config
from tests.helpers.data import tiny_text_corpus
from trainer.config.schema import Config
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore
from trainer.errors import Exit
from trainer.records.store_lookup import find_stores
from trainer.records.token_store import MANIFEST

_SLOW = """
import pathlib, sys, time
from trainer.config.schema import Config
from trainer.data import encode_pool
from trainer.data.prepare import prepare
encode_pool.CHUNK_DOCUMENTS = 20
whole = encode_pool.chunks
def slow(texts):
    for number, chunk in enumerate(whole(texts)):
        yield chunk
        time.sleep(600 if number == 100 else 0)  # until it is killed
encode_pool.chunks = slow
prepare(Config.model_validate_json(pathlib.Path(sys.argv[1]).read_text()), log=print)
"""


def test_two_processes_make_the_same_store_as_one(tmp_path: Path) -> None:
    corpus = tmp_path / "big.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for n in range(9000):  # more than one chunk of documents
            file.write(json.dumps({"text": f"number {n} of many \u00e9{n * n}"}) + "\n")
    paths = [
        Path(prepare(tiny_config(corpus, tmp_path / str(n), num_workers=n), log=silent)[0].path)
        for n in (1, 2)
    ]
    assert _same(*paths)


def test_the_command_answers_what_a_plan_needs(tmp_path: Path) -> None:
    made = tiny_config(tiny_text_corpus(tmp_path), tmp_path / "stores")
    done = subprocess.run(_command(made, tmp_path / "c"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "c" / "result.json").read_text())
    assert answer["stores"] == [p.model_dump(mode="json") for p in prepare(made, log=silent)]
    manifest = TokenStore.open(Path(answer["stores"][0]["path"])).manifest
    assert answer["vocabulary"]["vocab_size"] == manifest.vocab_size
    assert answer["vocabulary"]["unigram_entropy_nats"] == manifest.unigram_entropy_nats
    assert Path(answer["vocabulary"]["tokenizer"]).is_file()


def test_no_space_is_one_sentence_and_nothing_is_published(tmp_path: Path) -> None:
    corpus = tiny_text_corpus(tmp_path, documents=3000)
    made = tiny_config(corpus, tmp_path / "stores", shard_tokens=1_000_000)
    # a limit on file sizes is the system's own refusal to write on, at the same place
    limit = "import resource as r, runpy, sys; r.setrlimit(r.RLIMIT_FSIZE, (60000, 60000))"
    run = f"{limit}; sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__')"
    command = _command(made, tmp_path / "c")
    done = subprocess.run([sys.executable, "-c", run, *command[2:]], capture_output=True, text=True)
    assert done.returncode == Exit.STOP
    assert "error: no space left for the token store" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "stores").glob(f"*/{MANIFEST}"))
    prepare(made, log=silent)  # and with space again it is made


def test_a_killed_preparation_goes_on_and_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    corpus = tiny_text_corpus(tmp_path, documents=3000)
    whole = prepare(tiny_config(corpus, tmp_path / "whole"), log=silent)[0]
    made = tiny_config(corpus, tmp_path / "cut")
    _command(made, tmp_path / "c")
    child = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(tmp_path / "c" / "config.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "cut").glob("tiny-*.incoming/train-00009.tokens")):
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    incoming = next((tmp_path / "cut").glob("tiny-*.incoming"))
    assert find_stores(made.data.model_dump(mode="json")) is None
    first = incoming / "train-00000.tokens"
    inode, written = first.stat().st_ino, first.stat().st_mtime_ns

    said: list[str] = []
    again = prepare(made, log=said.append)[0]
    assert any("going on behind document" in line for line in said)
    kept = (Path(again.path) / "train-00000.tokens").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (inode, written)  # not written again
    assert _same(Path(whole.path), Path(again.path))


def test_two_at_the_same_time_make_one_store(tmp_path: Path) -> None:
    made = tiny_config(tiny_text_corpus(tmp_path, documents=300), tmp_path / "stores")
    children = [
        subprocess.Popen(_command(made, tmp_path / f"c{n}"), stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    said = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert sum("tokens to train on" in text for text in said) == 1
    TokenStore.open(Path(prepare(made, log=silent)[0].path)).verify()


def _command(made: Config, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(made.model_dump_json(), encoding="utf-8")
    module = "trainer.commands.prepare"
    result = str(folder / "result.json")
    return [sys.executable, "-m", module, str(folder / "config.json"), "--result", result]


def _same(one: Path, other: Path) -> bool:
    names = sorted(p.name for p in one.iterdir())
    return names == sorted(p.name for p in other.iterdir()) and all(
        (one / n).read_bytes() == (other / n).read_bytes() for n in names
    )
