"""From a corpus to token stores: found when current, made once, whole after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from launch.stand import Standing, refuse_other_tokens
from tests.helpers.corpora import BPE, silent, tiny_config
from tests.helpers.data import tiny_text_corpus
from trainer.commands.prepare import main
from trainer.data.prepare import prepare
from trainer.data.store import TokenStore
from trainer.data.tokenizer import TextTokenizer
from trainer.errors import ConfigError, DataError, Exit, Refused
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles
from trainer.records.store_lookup import find_stores
from trainer.records.token_store import MANIFEST, TOKENIZER


def test_every_document_is_in_one_split_and_reads_back(tmp_path: Path) -> None:
    corpus = tiny_text_corpus(tmp_path, documents=60)
    plan = prepare(tiny_config(corpus, tmp_path / "stores"), log=silent)[0]
    store = TokenStore.open(Path(plan.path))
    tokenizer = TextTokenizer.open(store.path)
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    found = []
    for split in (store.train, store.held_out):
        for number in range(split.num_documents):
            ids = split.document_tokens(number).tolist()
            assert ids[-1] == tokenizer.end_of_text_id
            found.append(tokenizer.decode(ids[:-1]))
    assert sorted(found) == sorted(texts)
    assert store.train.num_shards > 1
    assert 4 <= store.held_out.num_documents <= 22
    assert plan.train_tokens == store.train.num_tokens
    assert store.manifest.source_bytes == sum(len(t.encode()) for t in texts)
    assert 0 < store.manifest.unigram_entropy_nats < 6


def test_a_current_store_is_found_without_work_or_heavy_imports(tmp_path: Path) -> None:
    made = tiny_config(tiny_text_corpus(tmp_path), tmp_path / "stores")
    plans = prepare(made, log=silent)
    before = (Path(plans[0].path) / MANIFEST).stat()
    said: list[str] = []
    assert prepare(made, log=said.append) == plans
    assert said == []
    assert (Path(plans[0].path) / MANIFEST).stat().st_ino == before.st_ino
    script = (
        "import json, sys; from trainer.records.store_lookup import find_stores;"
        "found = find_stores(json.loads(sys.argv[1]));"
        "heavy = {'numpy', 'torch', 'tokenizers', 'datasets', 'pydantic'} & set(sys.modules);"
        "print(json.dumps([[f.path for f in found], sorted(heavy)]))"
    )
    data = json.dumps(made.data.model_dump(mode="json"))
    done = subprocess.run([sys.executable, "-c", script, data], capture_output=True, check=True)
    assert json.loads(done.stdout) == [[plans[0].path], []]


@pytest.mark.parametrize("change", ["corpus", "tokenizer", "held_out", "settings"])
def test_what_changes_the_tokens_makes_another_store(tmp_path: Path, change: str) -> None:
    corpus = tiny_text_corpus(tmp_path)
    made = tiny_config(corpus, tmp_path / "stores")
    first = prepare(made, log=silent)
    again: dict[str, Any] = {}
    if change == "corpus":
        with corpus.open("a", encoding="utf-8") as file:
            file.write('{"text": "one more"}\n')
    elif change == "tokenizer":
        again = {"tokenizer": BPE | {"vocab_size": 300}}
    elif change == "held_out":
        again = {"held_out_fraction": 0.3}
    else:
        source = made.data.sources["tiny"].model_dump() | {"on_bad_line": "skip"}
        again = {"sources": {"tiny": source}}
    other = tiny_config(corpus, tmp_path / "stores", **again)
    assert find_stores(other.data.model_dump(mode="json")) is None
    assert prepare(other, log=silent)[0].path != first[0].path
    if change != "corpus":
        assert prepare(made, log=silent) == first  # and the first one is still there


def test_weights_and_rows_do_not_make_another_store(tmp_path: Path) -> None:
    made = tiny_config(tiny_text_corpus(tmp_path), tmp_path / "stores")
    prepare(made, log=silent)
    other = made.data.model_copy(update={"sequence_length": 64, "packing": False})
    assert find_stores(other.model_dump(mode="json")) is not None


def test_a_store_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    made = tiny_config(tiny_text_corpus(tmp_path), tmp_path / "stores")
    plan = prepare(made, log=silent)[0]
    (Path(plan.path) / "train-00000.tokens").unlink()
    said: list[str] = []
    assert prepare(made, log=said.append)[0] == plan
    assert any("is not whole; preparing it again" in line for line in said)
    TokenStore.open(Path(plan.path)).verify()


def test_text_that_spells_the_end_of_text_stays_text(tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    text = "before <|endoftext|> after, " * 20
    corpus.write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    store = TokenStore.open(Path(prepare(tiny_config(corpus, tmp_path / "s"), log=silent)[0].path))
    ids = store.train.document_tokens(0).tolist()
    end = store.manifest.end_of_text_id
    assert ids.count(end) == 1
    assert TextTokenizer.open(store.path).decode(ids[:-1]) == text


def test_left_out_documents_are_counted(tmp_path: Path) -> None:
    corpus = tiny_text_corpus(tmp_path)
    with corpus.open("a", encoding="utf-8") as file:
        file.write("not json\n")
    source = {"kind": "files", "format": "jsonl", "paths": [str(corpus)], "on_bad_line": "skip"}
    said: list[str] = []
    made = tiny_config(corpus, tmp_path / "s", sources={"tiny": source})
    plan = prepare(made, log=said.append)[0]
    assert TokenStore.open(Path(plan.path)).manifest.skipped_documents == 1
    assert any("left out 1 bad document, such as:" in line for line in said)


def test_a_source_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n', encoding="utf-8")
    pretrained = _tokenizer_folder(tmp_path)
    made = tiny_config(tmp_path / "c.jsonl", tmp_path / "s", tokenizer=pretrained)
    with pytest.raises(Refused, match=r"data\.sources\.tiny holds no text"):
        prepare(made, log=silent)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.txt is empty"),
        (b"\x00\x01text", "bad.txt is a binary file"),
        (b"a\xff", "bad.txt is not UTF-8"),
        (None, "bad.txt does not exist"),
    ],
)
def test_a_corpus_that_is_bad_from_the_start_is_refused_and_nothing_written(
    tmp_path: Path,
    content: bytes | None,
    message: str,
    pretrained: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command, for its exit code is what a script sees: 2, whatever is wrong with it."""
    good, bad, stores = tmp_path / "good.txt", tmp_path / "bad.txt", tmp_path / "s"
    good.write_text("a text that can be read\n" * 50)
    if content is not None:
        bad.write_bytes(content)
    paths = [str(good), str(bad)]
    sources = {"mine": {"kind": "files", "format": "text", "paths": paths}}
    tokenizer = _tokenizer_folder(tmp_path) if pretrained else BPE
    made = tiny_config(good, stores, sources=sources, tokenizer=tokenizer)
    (tmp_path / "config.json").write_text(made.model_dump_json())
    assert main([str(tmp_path / "config.json")]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert message in said
    assert content is None or "data.sources.mine.on_bad_line=skip" in said
    assert not stores.exists()


def test_a_corpus_that_turns_bad_midway_stops(tmp_path: Path) -> None:
    """Something was written by then: that is no refusal, and starting again would not help."""
    corpus = tmp_path / "c.txt"
    line = "a paragraph of a text that can be read, and then the next of them\n\n"
    corpus.write_bytes(line.encode() * 10_000 + b"\xff\n")
    source = {"kind": "files", "format": "text", "paths": [str(corpus)], "document": "paragraph"}
    made = tiny_config(
        corpus, tmp_path / "s", sources={"mine": source}, tokenizer=_tokenizer_folder(tmp_path)
    )
    with pytest.raises(DataError, match=r"c\.txt is not UTF-8: byte 0xff"):
        prepare(made, log=silent)
    assert any((tmp_path / "s").glob("mine-*"))
    assert DataError.exit_code == Exit.STOP


@pytest.mark.parametrize(("at", "code"), [(1, Exit.REFUSED), (30_000, Exit.STOP)])
def test_a_users_source_that_raises_is_one_sentence_and_its_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
    code: Exit,
) -> None:
    """At once: nothing is written. Later, behind what was looked at before: 78."""
    (tmp_path / f"raising_{at}.py").write_text(
        "class Texts:\n"
        "    def documents(self):\n"
        f"        for n in range(1, {at}):\n"
        "            yield f'{n} is a number of a text that can be read'\n"
        "        raise KeyError('body')\n"
        "    def digest(self):\n"
        "        return 'same'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = {"kind": "custom", "target": f"raising_{at}:Texts"}
    tokenizer = _tokenizer_folder(tmp_path)
    made = tiny_config(tmp_path, tmp_path / "s", sources={"mine": source}, tokenizer=tokenizer)
    made = made.model_copy(
        update={"run": made.run.model_copy(update={"trust": (f"raising_{at}",)})}
    )
    (tmp_path / "config.json").write_text(made.model_dump_json())
    assert main([str(tmp_path / "config.json")]) == code
    said = capsys.readouterr().err
    first = said[said.index("error: ") :].splitlines()[0]
    assert first == (
        f"error: data source mine: raising_{at}:Texts.documents() failed at document {at}: "
        f"KeyError: 'body' ({tmp_path}/raising_{at}.py line 5, in documents); correct that code"
    )
    assert said.count("Traceback") == 1
    assert "    raise KeyError('body')" in said
    assert (tmp_path / "s").exists() is (code == Exit.STOP)


def test_a_pretrained_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    corpus = tiny_text_corpus(tmp_path)
    made = tiny_config(corpus, tmp_path / "s", tokenizer=_tokenizer_folder(tmp_path))
    store = TokenStore.open(Path(prepare(made, log=silent)[0].path))
    given = TextTokenizer.open(Path(made.data.tokenizer.path))  # type: ignore[union-attr]
    assert store.manifest.vocab_size == given.vocab_size < 400
    assert store.manifest.end_of_text_id == given.end_of_text_id == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist; name a Hugging Face tokenizer folder"),
        ({}, r"has neither tokenizer\.json nor vocab\.json and merges\.txt"),
        ({"tokenizer.json": "{}"}, "is not a Hugging Face tokenizer"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\n"},
            "this tokenizer names no end-of-text token",
        ),
    ],
)
def test_what_is_no_tokenizer_is_refused(
    tmp_path: Path, files: dict[str, str] | None, message: str
) -> None:
    folder = tmp_path / "tokenizer"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    settings = {"kind": "pretrained", "path": str(folder)}
    made = tiny_config(tiny_text_corpus(tmp_path), tmp_path / "s", tokenizer=settings)
    with pytest.raises(Refused, match=message):
        prepare(made, log=silent)
    assert not (tmp_path / "s").exists()


def _tokenizer_folder(tmp_path: Path) -> dict[str, str]:
    made = tiny_config(tiny_text_corpus(tmp_path / "other"), tmp_path / "other" / "s")
    return {"kind": "pretrained", "path": prepare(made, log=silent)[0].path}


@pytest.mark.parametrize("damage", ["swapped", "gone"])
def test_a_store_with_another_tokenizer_is_made_again(tmp_path: Path, damage: str) -> None:
    """Its numbers would mean other text."""
    made = tiny_config(tiny_text_corpus(tmp_path), tmp_path / "stores")
    plan = prepare(made, log=silent)[0]
    path = Path(plan.path) / TOKENIZER
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole.replace(b'"a"', b'"#"', 1))
        assert path.read_bytes() != whole
    assert find_stores(made.data.model_dump(mode="json")) is None
    assert prepare(made, log=silent)[0].manifest_digest == plan.manifest_digest
    assert path.read_bytes() == whole


def test_the_same_text_elsewhere_is_the_same_store(tmp_path: Path) -> None:
    """A machine with nothing has other paths, and files of another time."""
    corpus = tiny_text_corpus(tmp_path)
    copy = tmp_path / "elsewhere" / corpus.name
    copy.parent.mkdir()
    copy.write_bytes(corpus.read_bytes())
    os.utime(copy, (1.0, 1.0))
    changed = tmp_path / "changed" / corpus.name
    changed.parent.mkdir()
    changed.write_bytes(corpus.read_bytes().replace(b"a", b"o", 1))
    here, there, other = (
        prepare(tiny_config(path, path.parent / "stores"), log=silent)[0]
        for path in (corpus, copy, changed)
    )
    assert here.manifest_digest == there.manifest_digest != other.manifest_digest


def test_what_an_older_plan_calls_a_store_is_known(tmp_path: Path) -> None:
    """By its manifest file's digest, which another machine cannot come to."""
    made = tiny_config(tiny_text_corpus(tmp_path), tmp_path / "stores")
    now = prepare(made, log=silent)[0]
    run = RunFiles(tmp_path / "run")
    run.attempt(1).root.mkdir(parents=True)
    store = now.model_dump(mode="json")
    older = sha256((Path(now.path) / MANIFEST).read_bytes()).hexdigest()
    for known in (older, now.manifest_digest):
        write_json(run.attempt(1).plan, {"stores": [store | {"manifest_digest": known}]})
        refuse_other_tokens(Standing(made, run, (now,)))
    write_json(run.attempt(1).plan, {"stores": [store | {"manifest_digest": "f" * 64}]})
    with pytest.raises(ConfigError, match="its text or its tokenizer has changed"):
        refuse_other_tokens(Standing(made, run, (now,)))
