"""Models by the name of a repository: fetched from a Hub at one revision, then found without a network."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from latentgen import TextToImagePipeline
from latentgen.cli import script

CALL = {"prompt": "a red apple", "seed": 1, "num_inference_steps": 2, "output_type": "np", "show_progress": False}
load = partial(TextToImagePipeline.from_pretrained, torch_dtype=torch.float32, device="cpu")


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that downloading one model needs, over the folder `server.folder`."""

    revision = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.asked.append(self.path)
        path = self.path.partition("?")[0]
        files = [str(file.relative_to(self.server.folder)) for file in self.server.folder.rglob("*.*")]
        if path.startswith("/api/models/owner/tiny/revision/") or path == "/api/models/owner/tiny":
            listing = {"id": "owner/tiny", "sha": self.revision, "siblings": [{"rfilename": file} for file in files]}
            self.send(json.dumps(listing).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith("/api/models/owner/tiny/tree/"):
            tree = [
                {"type": "file", "path": file, "size": (self.server.folder / file).stat().st_size, "oid": "0"}
                for file in files
            ]
            self.send(json.dumps(tree).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith(f"/owner/tiny/resolve/{self.revision}/"):
            content = (self.server.folder / path.split(self.revision + "/")[1]).read_bytes()
            self.send(content, body, {"ETag": f'"{hash(path)}"', "X-Repo-Commit": self.revision})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: self.server.most])
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.asked, server.most = tiny_copy, [], None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_model_is_fetched_at_one_revision_and_then_found_offline(hub, tiny_folder, tmp_path, monkeypatch) -> None:
    unet = hub.folder / "unet"
    (hub.folder / "README.md").write_text("not needed")
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"not needed")
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not needed")
    pipe = load("owner/tiny", cache_dir=tmp_path / "cache")
    expected = load(tiny_folder)(**CALL).images
    assert np.array_equal(pipe(**CALL).images, expected)
    fetched = [path for path in hub.asked if "/resolve/" in path]
    assert fetched
    assert all(f"/resolve/{Hub.revision}/" in path for path in fetched)
    assert not [path for path in fetched if path.endswith((".bin", ".md", ".fp16.safetensors"))]

    seen = len(hub.asked)
    again = load("owner/tiny", cache_dir=tmp_path / "cache", local_files_only=True)
    assert np.array_equal(again(**CALL).images, expected)
    assert len(hub.asked) == seen
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    load("owner/tiny", cache_dir=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="no folder owner/tiny here, local_files_only is set"):
        load("owner/tiny", cache_dir=tmp_path / "empty", local_files_only=True)
    with pytest.raises(FileNotFoundError, match="the Hub cannot be reached"):
        load("owner/tiny", cache_dir=tmp_path / "empty")


def test_a_download_that_breaks_off_is_said_and_goes_on_later(hub, tmp_path) -> None:
    hub.most = 1000
    with pytest.raises(OSError, match=r"download of owner/tiny broke off .*; run it again") as told:
        load("owner/tiny", cache_dir=tmp_path / "cache")
    assert script.run(lambda: throw(told.value)) == 2
    hub.most = None
    load("owner/tiny", cache_dir=tmp_path / "cache")


def throw(error: Exception) -> None:
    raise error


def test_parts_that_the_caller_brings_are_not_fetched(hub, tiny_folder, tmp_path) -> None:
    mine = load(tiny_folder)
    shutil.rmtree(hub.folder / "vae")
    pipe = load("owner/tiny", cache_dir=tmp_path / "cache", unet=mine.unet, vae=mine.vae)
    assert pipe.unet is mine.unet
    assert not [path for path in hub.asked if "/unet/" in path]


def test_a_hub_model_that_is_not_there_or_only_pickled(hub, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no model owner/other on the Hub"):
        load("owner/other", cache_dir=tmp_path / "cache")
    path = hub.folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"only as diffusion_pytorch_model.bin, a pickle"):
        load("owner/tiny", cache_dir=tmp_path / "cache")
    assert not [path for path in hub.asked if path.endswith((".bin", ".safetensors"))]
    (hub.folder / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model_index.json"):
        load("owner/tiny", cache_dir=tmp_path / "cache")
