"""The Hub's own client against a server in this process: there, back, offline, and refusals."""

import json
import os
import subprocess
import sys

import pytest
from flax import nnx

from tests.weights.fake_hub import serving
from vadapt import adapters
from vadapt.backbones.vit import vit
from vadapt.errors import WeightsError
from vadapt.weights import hub
from vadapt.weights.adapter_file import load_adapter, read_info, save_adapter
from vadapt.weights.hub import download, local_path, parse, pull
from vadapt.weights.publish import push


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def there(server, tmp_path):
    """Arguments that make the client ask this server and keep what it fetches here."""
    return {"endpoint": server.url, "cache_dir": tmp_path / "cache"}


@pytest.fixture
def adapter(tmp_path):
    model = adapters.apply(
        vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(0)), "lora", rank=2, targets=("q",)
    )
    path = tmp_path / "adapter.safetensors"
    save_adapter(path, model, backbone="vit_micro", classes=("sky", "road"))
    return path


def test_what_is_pushed_comes_back_byte_for_byte_and_again_without_a_server(adapter, tmp_path):
    cache = tmp_path / "cache"
    with serving() as server:
        url = push(adapter, "me/thermal", endpoint=server.url, token="secret", message="First")
        assert url.startswith(f"{server.url}/me/thermal/commit/")
        assert server.messages == ["First"]
        assert server.private == set()
        found = pull("hf:me/thermal", endpoint=server.url, cache_dir=cache)
        assert found.read_bytes() == adapter.read_bytes()
        endpoint = server.url
    for options in ({}, {"local_only": True}):
        again = pull("hf:me/thermal", endpoint=endpoint, cache_dir=cache, **options)
        assert again.read_bytes() == adapter.read_bytes()
        assert download("hf:me/thermal", endpoint=endpoint, cache_dir=cache, **options) == again
    with pytest.raises(
        WeightsError, match=r"hf:me/other is not in the cache.*hf download me/other"
    ):
        download("hf:me/other", endpoint=endpoint, cache_dir=cache)
    with pytest.raises(WeightsError, match="is not in the cache"):
        # Without `local_only` the client tries for 20 s.
        pull("hf:me/other", endpoint=endpoint, cache_dir=cache, local_only=True)
    with pytest.raises(WeightsError, match=r"does not serve hf:me/thermal: .*refused"):
        push(adapter, "me/thermal", endpoint=endpoint, token="secret")


def test_the_card_says_how_to_load_and_is_written_once(server, adapter):
    push(adapter, "me/thermal", private=True, endpoint=server.url, token="secret")
    files = server.repositories["me/thermal"]
    card = files["README.md"].decode()
    assert server.private == {"me/thermal"}
    for text in (
        "library_name: vadapt",
        "lora(rank=2, targets=['q']) on 'vit_micro'",
        read_info(adapter).base,
        "sky, road",
        'vadapt.adapt_from(backbone, "hf:me/thermal")',
    ):
        assert text in card
    files["README.md"] = b"my own words"
    push(adapter, "me/thermal", endpoint=server.url, token="secret")
    assert files["README.md"] == b"my own words"
    assert len(server.messages) == 2


def test_weights_are_picked_in_order(server, there):
    files = server.repositories["org/model"] = {"pytorch_model.bin": b"pickle"}
    for name in ("adapter.safetensors", "open_clip_model.safetensors", "model.safetensors"):
        assert download("hf:org/model", **there).name == list(files)[-1]
        files[name] = name.encode()
    found = download("hf:org/model@main", **there)
    assert (found.name, found.read_bytes()) == ("model.safetensors", b"model.safetensors")
    assert download("hf:org/model/pytorch_model.bin", **there).read_bytes() == b"pickle"
    old = download(f"hf:org/model@{server.commit('org/model')}/pytorch_model.bin", **there)
    assert old.read_bytes() == b"pickle"


def test_of_sharded_weights_all_files_come_and_lie_together(server, there):
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}
    files = {"model.safetensors.index.json": json.dumps(index).encode()}
    files |= {name: name.encode() for name in names}
    server.repositories["org/large"] = files
    server.repositories["org/nested"] = {f"half/{name}": data for name, data in files.items()}
    for source in ("hf:org/large", "hf:org/nested/half/model.safetensors.index.json"):
        path = download(source, **there)
        assert path.name == "model.safetensors.index.json"
        for name in names:
            assert path.with_name(name).read_bytes() == name.encode()
    del files[names[1]]
    with pytest.raises(WeightsError, match="is not all there"):
        download("hf:org/large", **there)


def test_what_is_not_there_is_said_with_the_next_move(server, there):
    server.repositories["org/empty"] = {"README.md": b""}
    server.repositories["org/gated"] = {"model.safetensors": b"x"}
    server.gated.add("org/gated")
    for source, message in {
        "hf:org/none": "hf:org/none does not exist, or is private: check the name, or log in",
        "hf:org/empty": r"has none of model\.safetensors, .*hf:org/empty/FILE",
        "hf:org/empty/x.bin": r"org/empty has no file 'x\.bin'",
        "hf:org/empty@other": "no revision 'other'",
        "hf:org/gated": "gated: ask for access",
        "hf:org": "is no address",
        "hf:a/b@c@d": "is no address",
    }.items():
        with pytest.raises(WeightsError, match=message):
            download(source, **there)
    assert download("hf:org/gated", token="secret", **there).read_bytes() == b"x"


def test_pushing_without_a_login_or_an_adapter_is_refused(server, adapter, tmp_path):
    with pytest.raises(WeightsError, match="log in"):
        push(adapter, "me/thermal", endpoint=server.url, token="wrong")
    (tmp_path / "foreign.safetensors").write_bytes(b"else")
    with pytest.raises(WeightsError, match="damaged"):
        push(tmp_path / "foreign.safetensors", "me/thermal", endpoint=server.url, token="secret")
    assert server.repositories == {}


def test_addresses():
    assert parse("hf:org/name") == ("org/name", None, None)
    assert parse("hf:org/name@v1.0/a/b.bin") == ("org/name", "v1.0", "a/b.bin")
    assert parse("hf:org/name@refs/pr/1/b.bin") == ("org/name", "refs/pr/1", "b.bin")
    assert str(parse("hf:org/name@v1.0/a/b.bin")) == "hf:org/name@v1.0/a/b.bin"
    assert local_path("a/b.bin").as_posix() == "a/b.bin"


def test_beside_a_whole_model_the_adapter_is_found(server, there, adapter, monkeypatch):
    files = {"model.safetensors": b"whole", "adapter.safetensors": adapter.read_bytes()}
    server.repositories["me/both"] = files
    download = hub.download
    monkeypatch.setattr(hub, "download", lambda source: download(source, **there))
    assert local_path("hf:me/both").read_bytes() == b"whole"
    plain = vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(0))
    adapted = adapters.adapt_from(plain, "hf:me/both")
    load_adapter(adapted, "hf:me/both")
    assert adapted.blocks[0].attn.inner.qkv.lora.down.shape == (1, 96, 2)


def test_the_client_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'vadapt\[hub\]'"):
        download("hf:org/name")


def test_the_clients_own_offline_switch_is_heeded(server, there):
    server.repositories["org/model"] = {"pytorch_model.bin": b"pickle"}
    path = download("hf:org/model", **there)
    code = (
        "import sys; from vadapt.weights.hub import download;"
        "print(download('hf:org/model', endpoint=sys.argv[1], cache_dir=sys.argv[2]))"
    )
    asked = len(server.requests)
    found = subprocess.run(
        [sys.executable, "-c", code, server.url, str(there["cache_dir"])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert found.stdout.strip() == str(path)
    assert len(server.requests) == asked


def test_nothing_is_asked_of_a_server_if_told_so(server, there):
    with pytest.raises(WeightsError, match="not in the cache"):
        hub.pull("hf:org/model", local_only=True, **there)
    assert server.requests == []
