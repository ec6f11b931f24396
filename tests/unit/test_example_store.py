"""Example stores: what is written is read, packed or not; damage, restarts, staleness are seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.task_cases import CASES, case_plan, written
from trainer.batch import ExampleBatch
from trainer.config.schema import Config
from trainer.data import prepare_examples
from trainer.data.encodings.base import PLACES
from trainer.data.example_store import ExampleStore
from trainer.data.prepare import prepare
from trainer.data.table import open_sources, open_stream
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.dist.world import Alone
from trainer.errors import DataError, Refused
from trainer.plan import RunPlan, StorePlan
from trainer.records.example_lookup import example_keys, find_example_stores
from trainer.records.json_file import read_lines

NAME = "classify_pair"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def packed(folder: Path) -> RunPlan:
    return case_plan(folder, NAME)


@pytest.fixture(scope="module")
def apart(folder: Path) -> RunPlan:
    return case_plan(folder, NAME, ["data.packing=false"])


def held_out(plan: RunPlan) -> list[ExampleBatch]:
    stream = open_stream(plan, Alone(), sources=open_sources(plan), cursor=None)
    return list(stream.held_out_batches(1_000))


def examples_of(batches: list[ExampleBatch]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """(ids, segments, positions, class) of each example, wherever it lies."""
    for batch in batches:
        fields = {name: values.numpy() for name, values in batch.fields.items()}
        number = 0
        for row, documents in enumerate(fields["documents_RT"]):
            for document in range(1, documents.max() + 1):
                at = documents == document
                flat = row * len(documents) + int(np.flatnonzero(at)[0])
                assert fields["first_E"][number] == flat
                assert fields["weights_E"][number] == 1
                yield (
                    tuple(fields["inputs_RT"][row, at]),
                    tuple(fields["segments_RT"][row, at]),
                    tuple(fields["positions_RT"][row, at]),
                    (int(fields["classes_E"][number]),),
                )
                number += 1
        assert number == batch.terms


def test_packed_rows_hold_the_examples_of_single_ones(packed: RunPlan, apart: RunPlan) -> None:
    alone = list(examples_of(held_out(apart)))
    assert sorted(examples_of(held_out(packed))) == sorted(alone)
    assert len(alone) > 3
    for ids, segments, positions, _ in alone:
        assert positions == tuple(range(len(ids)))
        assert segments == tuple(sorted(segments))
        assert set(segments) == {0, 1}
    rows = [sum(len(b.sample_indices) for b in held_out(plan)) for plan in (packed, apart)]
    assert rows[0] < rows[1]


def test_ids_are_those_of_the_tokenizer_and_labels_those_of_the_file(
    apart: RunPlan, folder: Path
) -> None:
    store = ExampleStore.open(Path(apart.stores[0].path))
    tokenizer = TaskTokenizer.open(Path(apart.stores[0].path))
    lines = list(read_lines(folder / NAME / "examples.jsonl"))
    every = np.arange(store.train.num_examples)
    ids, lengths = store.train.values("inputs", every)
    classes, _ = store.train.values("classes", every)
    places, _ = store.train.values("places", every)
    assert store.manifest.labels == ("bad", "good", "odd")
    rows = places.reshape(-1, PLACES.width)[:, 1]
    begins = np.cumsum(lengths) - lengths
    for begin, length, number, row in zip(begins, lengths, classes, rows, strict=True):
        line = lines[row - 1]
        expected = tokenizer.encode(line["text"], line["text_pair"], length=48)
        assert ids[begin : begin + length].tolist() == expected.ids
        assert store.manifest.labels[number] == line["label"]
    assert store.manifest.num_examples("train") + store.held_out.num_examples == len(lines)


def test_the_order_of_rows_depends_on_neither_world_nor_cut(packed: RunPlan) -> None:
    def consumed(world: int, micro: int) -> list[tuple[tuple[int, ...], ...]]:
        changed = packed.config.batch.model_copy(update={"micro_batch_size": micro})
        plan = packed.model_copy(
            update={"config": packed.config.model_copy(update={"batch": changed})}
        )
        streams = []
        for rank in range(world):
            one = Alone()
            one.place = type(one.place)(rank=rank, world_size=world)  # type: ignore[misc]
            streams.append(open_stream(plan, one, sources=open_sources(plan), cursor=None))
        found: list[tuple[tuple[int, ...], ...]] = []
        for step in (1, 2, 9):
            batches = [stream.step(step) for stream in streams]
            assert len({len(b) for b in batches}) == 1
            for micro_step in range(len(batches[0])):
                found += [e for b in batches for e in examples_of([b[micro_step]])]
        for stream in streams:
            stream.close()
        return found

    alone = consumed(1, 1)
    assert consumed(1, 5) == alone
    assert consumed(2, 2) == alone
    assert consumed(3, 1) == alone


def test_a_resumed_stream_goes_on_as_if_nothing_happened(packed: RunPlan) -> None:
    whole = open_stream(packed, Alone(), sources=open_sources(packed), cursor=None)
    steps = [list(examples_of(list(whole.step(step)))) for step in range(1, 9)]
    cursor = whole.cursor(5)
    whole.close()
    assert cursor == {"step": 5, "next_sample": 25, "skipped": []}
    again = open_stream(packed, Alone(), sources=open_sources(packed), cursor=cursor)
    assert [list(examples_of(list(again.step(s)))) for s in range(6, 9)] == steps[5:]
    again.close()


def test_rows_beyond_the_batch_weigh_nothing(packed: RunPlan) -> None:
    shape = {"global_batch_size": 5, "micro_batch_size": 4}
    config = packed.config.model_copy(
        update={"batch": packed.config.batch.model_copy(update=shape)}
    )
    plan = packed.model_copy(update={"config": config})
    stream = open_stream(plan, Alone(), sources=open_sources(plan), cursor=None)
    first, second = stream.step(1)
    stream.close()
    assert (len(first.sample_indices), len(second.sample_indices)) == (4, 1)
    assert second.fields["inputs_RT"].shape[0] == 4
    assert not second.fields["documents_RT"][1:].any()
    empty = stream._reader.batches(
        "train",
        np.zeros(0, dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        samples=np.zeros(0, dtype=np.int64),
        sizes=[0],
    )[0]
    assert empty.terms == empty.tokens == 0
    assert empty.fields["first_E"].tolist() == [-1]
    assert empty.fields["weights_E"].tolist() == [0.0]
    assert empty.fields["classes_E"].shape == (1,)


# --- damage and staleness ------------------------------------------------------------------------


def copied(plan: RunPlan, folder: Path) -> RunPlan:
    target = folder / "copy"
    shutil.copytree(plan.stores[0].path, target)
    return plan.model_copy(update={"stores": (_at(plan.stores[0], target),)})


def _at(store: StorePlan, path: Path) -> StorePlan:
    return store.model_copy(update={"path": str(path)})


@pytest.mark.parametrize("suffix", ["inputs", "T.ends", "classes", "rows"])
def test_a_bit_that_flipped_is_found_at_the_first_touch(
    packed: RunPlan, tmp_path: Path, suffix: str
) -> None:
    plan = copied(packed, tmp_path)
    [file] = (tmp_path / "copy").glob(f"train*.{suffix}")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    stream = open_stream(plan, Alone(), sources=open_sources(plan), cursor=None)
    with pytest.raises(DataError, match=rf"{file.name} is damaged.*delete the folder"):
        stream.step(1)
    stream.close()
    with pytest.raises(DataError, match="is damaged"):
        ExampleStore.open(tmp_path / "copy").verify()


def test_a_file_that_is_short_or_gone_and_another_store_are_refused(
    packed: RunPlan, apart: RunPlan, tmp_path: Path
) -> None:
    plan = copied(packed, tmp_path)
    file = tmp_path / "copy" / "train-00000.segments"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"segments has .* bytes instead of"):
        open_sources(plan)
    file.unlink()
    with pytest.raises(DataError, match="segments is missing"):
        open_sources(plan)
    other = packed.model_copy(update={"stores": (_at(packed.stores[0], apart.stores[0].path),)})
    with pytest.raises(DataError, match="not the one this run was planned with"):
        open_sources(other)


def test_what_decides_a_store_makes_another_one(packed: RunPlan, folder: Path) -> None:
    def found(config: Config) -> bool:
        values = config.model_dump(mode="json")
        return find_example_stores(values["data"], values["task"]) is not None

    config = packed.config
    assert found(config)
    for change in ({"sequence_length": 32}, {"held_out_fraction": 0.3}, {"labels": ("a", "b")}):
        data = config.data.model_copy(update=change)
        assert not found(config.model_copy(update={"data": data})), change
    task = config.task.model_copy(update={"answers": "regression"})
    assert not found(config.model_copy(update={"task": task}))
    path = folder / NAME / "examples.jsonl"
    before = path.read_text()
    path.write_text(before.replace("good", "fine"))
    assert not found(config)
    path.write_text(before)  # the stores of this module are of it


def test_a_template_is_known_by_its_text(packed: RunPlan, tmp_path: Path) -> None:
    values = packed.config.model_dump(mode="json")
    template = tmp_path / "mine.jinja"

    def key(text: str) -> dict[str, str]:
        template.write_text(text)
        return example_keys(values["data"], {"kind": "chat", "template": str(template)}).stores

    assert key("{{ messages }}") == key("{{ messages }}")
    assert key("{{ messages }}") != key("{{ messages }}!")


def test_other_code_makes_another_store_and_runs_go_on_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = case_plan(tmp_path, "classify")
    monkeypatch.setattr("trainer.records.example_lookup.code_digest", lambda: "another")
    values = plan.config.model_dump(mode="json")
    assert find_example_stores(values["data"], values["task"]) is None
    [again] = prepare(plan.config, log=lambda _: None)
    assert again.path != plan.stores[0].path
    assert again.manifest_digest == plan.stores[0].manifest_digest
    open_sources(plan.model_copy(update={"stores": (again,)}))


def test_an_interrupted_preparation_goes_on_and_comes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["data.shard_tokens=1000"]
    folder = tmp_path
    whole = case_plan(folder, "classify", few, count=300)
    (folder / "stores").rename(folder / "before")
    real = prepare_examples._add
    left = 200

    def stops(*args: object, **named: object) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare_examples, "_add", stops)
    with pytest.raises(KeyboardInterrupt):
        case_plan(folder, "classify", few, count=300)
    monkeypatch.setattr(prepare_examples, "_add", real)
    [incoming] = (folder / "stores").glob("*.incoming")
    assert json.loads((incoming / "progress.json").read_text())["next_record"] > 50
    ended = case_plan(folder, "classify", few, count=300)
    assert ended.stores[0].manifest_digest == whole.stores[0].manifest_digest
    ExampleStore.open(Path(ended.stores[0].path)).verify()


# --- what a user gets to read --------------------------------------------------------------------


def refused(folder: Path, lines: list[dict[str, object]], *overrides: str) -> str:
    path = folder / "bad" / "examples.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = case_plan(folder, "classify").config
    source = config.data.sources["examples"].model_copy(update={"paths": (str(path),)})
    data = config.data.model_copy(update={"sources": {"examples": source}})
    for text in overrides:
        name, _, value = text.partition("=")
        data = data.model_copy(update={name: tuple(value.split(","))})
    with pytest.raises(Refused) as caught:
        prepare(config.model_copy(update={"data": data}), log=lambda _: None)
    return str(caught.value)


def test_a_label_outside_the_declared_set_is_named_with_its_row(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"text": "a", "label": "good"}, {"text": "b", "label": "bda"}]
    said = refused(tmp_path, lines, "labels=good,bad")
    assert "examples.jsonl row 2: the label 'bda' is none of the 2" in said
    assert "did you mean 'bad'?" in said
    assert "rows like it are left out by data.sources.examples.on_bad_line=skip" in said


def test_a_source_without_an_example_is_refused(tmp_path: Path) -> None:
    assert "examples.jsonl is empty" in refused(tmp_path, [])


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "r", CASES["classify"].row)
    plan = case_plan(tmp_path, "regression")
    source = plan.config.data.sources["examples"].model_copy(update={"paths": (str(path),)})
    data = plan.config.data.model_copy(update={"sources": {"examples": source}})
    with pytest.raises(Refused, match=r"row 1: the label '\w+' is no number"):
        prepare(plan.config.model_copy(update={"data": data}), log=lambda _: None)


def test_rows_that_no_example_can_be_made_of_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [{"text": f"text {n}", "label": ("good", "bad")[n % 2]} for n in range(40)]
    lines[1] = {"text": "b", "label": "bda"}  # also where all sources are looked at first
    lines[39] = {"text": "c", "label": "odd"}
    path = tmp_path / "classify" / "lines.jsonl"
    made = case_plan(tmp_path, "classify").config
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = made.data.sources["examples"].model_copy(
        update={"paths": (str(path),), "on_bad_line": "skip"}
    )
    data = made.data.model_copy(update={"sources": {"examples": source}, "labels": ("good", "bad")})
    [store] = prepare(made.model_copy(update={"data": data}), log=lambda _: None)
    manifest = ExampleStore.open(Path(store.path)).manifest
    assert manifest.skipped_records == 2
    assert manifest.num_examples("train") + manifest.num_examples("held_out") == 38
    assert sum(manifest.label_counts) == manifest.num_examples("train")
