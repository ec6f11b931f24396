"""Ranges of safetensors folders, as transformers writes them and as they come broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import ModelError
from trainer.models.weights import SafetensorsFolder
from trainer.records.fragment import MASTER, Fragment

_SHAPES = {
    "model.embed_tokens.weight": (7, 3),
    "model.norm.weight": (3,),
    "lm_head.weight": (7, 3),
}
_LAYOUT = list(_SHAPES.items())
_INDEX = "model.safetensors.index.json"


def _tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {n: torch.randn(s).to(dtype) for n, s in _SHAPES.items()}


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path / "model.safetensors")
    return path


def _read(source: SafetensorsFolder, name: str, start: int, stop: int) -> torch.Tensor:
    out = torch.empty(stop - start)
    source.read(Fragment(name, MASTER, _SHAPES[name], start, stop), out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_range_is_the_stored_one_as_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = _tensors(dtype)
    source = SafetensorsFolder(_write(tmp_path, tensors), _LAYOUT)
    for name, tensor in tensors.items():
        flat = tensor.float().flatten()
        for start, stop in ((0, len(flat)), (1, 3), (2, 2), (len(flat) - 1, len(flat))):
            assert torch.equal(_read(source, name, start, stop), flat[start:stop])


def test_moments_are_zero(tmp_path: Path) -> None:
    source = SafetensorsFolder(_write(tmp_path, _tensors()), _LAYOUT)
    out = torch.full((3,), torch.nan)
    source.read(Fragment("model.norm.weight", "exp_avg", (3,), 0, 3), out)
    assert torch.equal(out, torch.zeros(3))


def test_a_sharded_folder_is_one(tmp_path: Path) -> None:
    tensors = _tensors()
    files = {n: f"model-{i:05}-of-00003.safetensors" for i, n in enumerate(tensors, 1)}
    for name, file in files.items():
        save_file({name: tensors[name]}, tmp_path / file)
    (tmp_path / _INDEX).write_text(json.dumps({"weight_map": files}))
    source = SafetensorsFolder(tmp_path, _LAYOUT)
    for name in files:
        size = tensors[name].numel()
        assert torch.equal(_read(source, name, 0, size), tensors[name].flatten())


def test_a_tied_head_may_be_stored_twice_and_masks_are_no_weights(tmp_path: Path) -> None:
    tensors = _tensors() | {"model.layers.0.attn.bias": torch.ones(1, 4)}
    SafetensorsFolder(_write(tmp_path, tensors), _LAYOUT[:2])


def test_a_folder_saved_without_its_head_has_shorter_names(tmp_path: Path) -> None:
    tensors = {n.partition(".")[2]: t for n, t in list(_tensors().items())[:2]}
    source = SafetensorsFolder(_write(tmp_path, tensors), _LAYOUT[:2])
    assert torch.equal(_read(source, "model.norm.weight", 0, 3), tensors["norm.weight"])


def test_gpt_neoxs_old_name_of_the_head_is_known(tmp_path: Path) -> None:
    tensors = _tensors()
    tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
    source = SafetensorsFolder(_write(tmp_path, tensors), _LAYOUT)
    assert torch.equal(
        _read(source, "lm_head.weight", 0, 21), tensors["embed_out.weight"].flatten()
    )


def test_missing_extra_and_misshapen_tensors_are_named_together(tmp_path: Path) -> None:
    tensors = _tensors() | {"model.more.weight": torch.ones(1), "model.norm.weight": torch.ones(4)}
    del tensors["lm_head.weight"]
    with pytest.raises(ModelError) as e:
        SafetensorsFolder(_write(tmp_path, tensors), _LAYOUT)
    assert str(e.value) == (
        f"{tmp_path} does not fit the model: it lacks lm_head.weight; it has tensors of another "
        "shape: model.norm.weight is 4, not 3; it has tensors that the model has not: "
        "model.more.weight"
    )


def test_pickle_only_is_refused(tmp_path: Path) -> None:
    torch.save(_tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*safetensors"
    ):
        SafetensorsFolder(tmp_path, _LAYOUT)


def test_a_folder_without_weights_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights: neither"):
        SafetensorsFolder(tmp_path, _LAYOUT)
    with pytest.raises(ModelError, match="is no folder"):
        SafetensorsFolder(tmp_path / "nowhere", _LAYOUT)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b", "..", ""])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    _write(tmp_path, _tensors())
    (tmp_path / _INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ModelError, match="is not a file of its own folder"):
        SafetensorsFolder(tmp_path, _LAYOUT)


def test_broken_indexes_are_refused(tmp_path: Path) -> None:
    (tmp_path / _INDEX).write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"names gone\.safetensors, which is missing"):
        SafetensorsFolder(tmp_path, _LAYOUT)
    for text in ("{", "[]", '{"weight_map": 3}'):
        (tmp_path / _INDEX).write_text(text)
        with pytest.raises(ModelError, match="is no index of safetensors files"):
            SafetensorsFolder(tmp_path, _LAYOUT)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        save_file(_tensors(), tmp_path / file)
    (tmp_path / _INDEX).write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    with pytest.raises(ModelError, match=r"is in both a\.safetensors and b\.safetensors"):
        SafetensorsFolder(tmp_path, _LAYOUT)


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_a_file_cut_short_is_refused_before_anything_is_read(tmp_path: Path, keep: int) -> None:
    file = _write(tmp_path, _tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cut short"):
        SafetensorsFolder(tmp_path, _LAYOUT)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[]", "its header is not a table"),
        (b"not json", "is no safetensors file"),
        (b'{"a": {"dtype": "F32"}}', "the header's entry of a is broken"),
        (b'{"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', "stored as I8"),
        (b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [-4, 32]}}', "not all there"),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header: bytes, said: str) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(64)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=said):
        SafetensorsFolder(tmp_path, _LAYOUT)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    source = SafetensorsFolder(_write(tmp_path, _tensors()), _LAYOUT)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelError, match="became shorter"):
        [_read(source, n, 0, 3 if n == "model.norm.weight" else 21) for n in _SHAPES]
