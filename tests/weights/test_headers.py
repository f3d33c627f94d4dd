"""Headers of adapter files that anyone may have written: one line each, before memory is taken."""

import contextlib
import json

import numpy as np
import pytest
from flax import nnx

from vadapt import adapters
from vadapt.backbones.vit import vit
from vadapt.errors import ConfigError, VadaptError, WeightsError
from vadapt.weights.adapter_file import read_info, save_adapter
from vadapt.weights.files import read_arrays, read_header, write_arrays


def plain():
    return vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "adapter.safetensors"
    save_adapter(
        path,
        adapters.apply(plain(), "lora", rank=2),
        backbone="vit_micro",
        classes=["sky"],
        statistics=((0.5, 0.5, 0.5), (1, 1, 1)),
        palette=[[0, 1, 255]],
        config={"model": {"options": {"depth": 1}}, "method": {"name": "none"}},
        options={"depth": 1},
        note={"any": ["thing", None, 1.5]},
    )
    return path


@pytest.fixture
def with_field(good, tmp_path):
    """An adapter file of which one field says something else, as text or as JSON."""

    def change(name, value):
        arrays = {key: np.asarray(array) for key, array in read_arrays(good).items()}
        text = value if isinstance(value, str) else json.dumps(value)
        path = tmp_path / "adapter.safetensors"
        write_arrays(path, arrays, {**read_header(good), name: text})
        return path

    return change


def refused(path, act, kind=WeightsError):
    with pytest.raises(kind) as error:
        act()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1200
    return str(error.value)


BIG = 10**9
FIELDS = {
    "base": ["x\ny", "x" * 10_000],
    "base_kind": [1, [], {}, {"a": 1}],
    "backbone": [3, ["vit"], {"name": "vit"}, "v" * 10_000, "vit\nmicro"],
    "classes": [5, "sky", {"sky": 1}, [1], [["sky"]], ["a\nb"], [None], ["x" * 10_000]],
    "statistics": [
        *(0, "x", [], [[0.5] * 3], [[0.5] * 3] * 3, [[0.5] * 2, [1] * 2], [0.5, 1], {"mean": 1}),
        *([[0, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, -1]], [[0, 0, "0"], [1, 1, 1]]),
        *([[None] * 3, [1, 1, 1]], [[True] * 3, [1, 1, 1]], [[1e300] * 3, [1, 1, 1]]),
        *("[[NaN,0,0],[1,1,1]]", "[[1e999,0,0],[1,1,1]]", "[[-Infinity,0,0],[1,1,1]]"),
    ],
    "palette": [7, "red", [1, 2, 3], [[1, 2]], [[0, 0, 256]], [[0, 0, -1]], [[0.5, 0, 0]], [[[]]]],
    "plan": [1, ["0"], "0,1\n", "0," * 10_000, "0-99999999999", "(0)x9999999", "skip:nine"],
    "trainable": [1, {"a": "b"}, [1], [None]],
    "method": [
        *(1, True, [1], [[]], {}, {"rank": 1}, {"name": 1}, {"name": ["lora"]}, [{"name": {}}]),
        *({"name": "lora", "rank": BIG}, {"name": "lora", "rank": -BIG}),
        *({"name": "rein", "num_tokens": BIG}, {"name": "lora", "a": {"depth": 10**6}}),
        *({"name": "spm", "num_stages": 10**6}, '{"name": "lora", "alpha": NaN}'),
    ],
    "options": [1, "x", [], {"depth": 10**6}, {"depths": [1, 10**6]}, {"width": 2**40}],
    "config": [
        *(1, "x", [], {"model": []}, {"data": 1}, {"method": 1}, {"method": {"name": []}}),
        *({"model": {"options": {"depth": 10**6}}}, {"data": {"image_size": [BIG, 1]}}),
        *({"model": {"allow_missing": ["(a+)+$"]}}, {"method": {"name": "lora", "rank": BIG}}),
        '{"task": {"weight": Infinity}}',
    ],
    "note": ["[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "[[NaN]]"],
    "grids": [1, {"pos_embed": [1]}, {"pos_embed": [BIG, BIG]}],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in FIELDS.items() for value in values],
    ids=lambda value: str(value)[:40],
)
def test_a_field_that_is_not_as_it_should_be_is_refused_in_one_line(with_field, field, value):
    path = with_field(field, value)
    message = refused(path, lambda: adapters.adapt_from(plain(), path))
    assert field in message


def test_what_save_adapter_writes_is_read_and_strange_fields_are_kept(good, with_field):
    info = read_info(good)
    assert (info.classes, info.extra["palette"]) == (("sky",), [[0, 1, 255]])
    assert info.extra["note"] == {"any": ["thing", None, 1.5]}
    assert read_info(with_field("note", "no JSON")).extra["note"] == "no JSON"
    assert read_info(with_field("classes", None)).classes == ()


@pytest.mark.parametrize(
    ("method", "kind", "words"),
    [
        ({"rank": 2**20}, WeightsError, "differ in 4 places"),
        ({"rank": 3}, WeightsError, "differ in 4 places"),
        ({"targets": ["q", "v", "fc1"]}, WeightsError, "differ in 2 places"),
        ({"name": "rein", "num_tokens": 2**20}, WeightsError, "differ in"),
        ({"rank": 0}, ConfigError, "a rank of at least 1"),
        ({"rank": 1.5}, ConfigError, "is no int"),
        ({"rank": None}, ConfigError, "is no int"),
        ({"rnak": 2}, ConfigError, "no option 'rnak'"),
        ({"name": "lroa"}, ConfigError, "'lora'"),
        ({"name": "patchwise_scale", "hidden": -4}, ConfigError, "a width of at least 1, got -4"),
        ({"targets": [5]}, WeightsError, "no model can be built"),
        ({"model": 5}, WeightsError, "no model can be built"),
        ({"rngs": 5}, WeightsError, "no model can be built"),
    ],
    ids=str,
)
def test_a_method_of_another_size_is_refused_before_memory_is_taken(
    with_field, monkeypatch, method, kind, words
):
    path = with_field(
        "method", method if "name" in method else {"name": "lora", "rank": 2, **method}
    )
    model = plain()
    built = []
    monkeypatch.setattr("vadapt.adapters.load_adapter", lambda *_: built.append(_))
    message = refused(path, lambda: adapters.adapt_from(model, path), kind)
    assert words in message
    assert not built


def test_no_field_of_any_kind_ends_in_another_error(with_field, monkeypatch):
    """A small fuzzer: anything of JSON in any field is read, or refused by an error of ours."""
    monkeypatch.setattr("vadapt.adapters.load_adapter", lambda *_: None)  # what is read may load
    model, rng = plain(), np.random.default_rng(0)
    values = ["", "null", "true", "-1", "1e999", "NaN", '"x"', "[]", "{}", "[[]]"]
    values += ['{"name": "lora"}']
    values += ["9" * 5000, '{"name": "lora", "name": "rein"}', "[{}]", "[[1,2,3],[1,2,3]]", "\x00"]
    refusals = []
    for field in FIELDS:
        for value in rng.permutation(values):
            path = with_field(field, str(value))
            with contextlib.suppress(VadaptError):
                adapters.adapt_from(model, path)
                continue
            refusals.append(value)
    assert len(refusals) > 60
