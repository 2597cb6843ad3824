"""Models given away and taken: a folder with its card, and a hub that a server of the test stands for."""

import errno
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from dydiff_dist.autoencoders import AutoencoderModelConfig, build_network, read_description, save_autoencoder
from dydiff_dist.data.manifest import FrameSchema
from dydiff_dist.diffusion.config import DiffusionConfig
from dydiff_dist.evaluation.score_files import SCORES_NAME
from dydiff_dist.files import seal
from dydiff_dist.forecasting import find_model, from_pretrained, load_forecaster, save_model, save_pretrained
from dydiff_dist.forecasting.exported import CONFIG_NAME
from dydiff_dist.forecasting.hub import CARD_NAME, push_to_hub

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def forecast(forecaster):
    history = torch.linspace(-1, 1, 3 * 2 * 16 * 16).reshape(3, 2, 16, 16)
    return forecaster.forecast(history[None], num_members=2, seed=1)


def test_a_model_given_away_forecasts_the_same_and_has_a_card(flow_model, tmp_path):
    scores = {
        "protocol": {"num_cases": 5, "num_members": 8},
        "errors": {},
        "scores": {"forecast": {"crps": {"overall": 0.25}}, "persistence": {"crps": {"overall": None}}},
    }
    (tmp_path / SCORES_NAME).write_text(json.dumps(scores))
    folder = save_pretrained(flow_model, tmp_path / "given", scores=tmp_path, licence="CC-BY-4.0")
    card = (folder / CARD_NAME).read_text()
    assert card.startswith("---\nlibrary_name: dydiff_dist\nlicense: cc-by-4.0\n")
    assert "3 frames in, 4 frames out" in card and "frames of 16 × 16" in card
    described = json.loads((folder / CONFIG_NAME).read_text())["run"]["diffusion"]
    assert f"process {DiffusionConfig.model_validate_json(json.dumps(described)).describe()}." in card
    assert "| forecast | 0.25 |" in card and "| persistence | – |" in card  # an undefined score is stored as null
    assert "Over 5 cases with 8 members" in card and str(tmp_path) not in card
    assert str(flow_model) not in (folder / CONFIG_NAME).read_text()
    torch.testing.assert_close(forecast(from_pretrained(folder)), forecast(load_forecaster(flow_model)), rtol=0, atol=0)
    assert "None were given." in (save_pretrained(flow_model, tmp_path / "bare") / CARD_NAME).read_text()


def test_where_the_run_lay_is_not_given_away(flow_model, flow_shards, tmp_path):
    record = json.loads((flow_model / "model" / "config.json").read_text())
    assert record["run"]["output_dir"] == str(flow_model) and Path(record["run"]["data"]["train"]).is_absolute()
    folder = save_pretrained(flow_model, tmp_path)
    given = json.loads((folder / "config.json").read_text())
    assert (given["run"]["output_dir"], given["run"]["data"]["train"]) == (flow_model.name, "train")
    assert given["run"]["training"] == record["run"]["training"] and given["data_schema"] == record["data_schema"]
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert not any(str(place).encode() in path.read_bytes() for place in (flow_model, flow_shards))


def test_an_autoencoder_goes_along_without_the_places_that_its_record_names(flow_model, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed (pip install 'dydiff_dist[latents]')")
    config = AutoencoderModelConfig(latent_channels=2, channels=(8, 8), layers_per_block=1, norm_groups=4)
    description = save_autoencoder(
        tmp_path / "autoencoder",
        build_network(config, num_channels=2, frame_size=16),
        frames=FrameSchema(num_frames=7, shape=(2, 16, 16), dtype="float32"),
        pixel_shift=(0.0, 0.0),
        pixel_scale=(1.0, 1.0),
        latent_shift=(0.0, 0.0),
        latent_scale=(1.0, 1.0),
        latent_channels=2,
        spatial_ratio=config.spatial_ratio,
        facts={"fetched_from": "/home/someone/vae", "steps": 3, "scores": {"samples": [1, 2]}},
    )
    record = json.loads((flow_model / "model" / "config.json").read_text())
    weights, autoencoder = {"w": torch.zeros(2)}, tmp_path / "autoencoder"
    save_model(tmp_path / "model", weights, record["run"], record["data_schema"], autoencoder=autoencoder)
    given = read_description(save_pretrained(tmp_path / "model", tmp_path / "given") / "autoencoder")
    assert given.facts == {"fetched_from": "vae", "steps": 3, "scores": {"samples": [1, 2]}}
    assert given.sha256 == description.sha256


def test_the_machine_s_own_trouble_is_not_laid_to_the_hub(flow_model, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

    def fails_with(error):
        def fail(*_, **__):
            raise error

        for name in ("snapshot_download", "create_repo"):
            monkeypatch.setattr(hub, name, fail)

    folder = save_pretrained(flow_model, tmp_path)
    fails_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache/model"))
    for ask in (lambda: from_pretrained("owner/model"), lambda: push_to_hub(folder, "owner/model")):
        with pytest.raises(OSError, match="No space left on device: 'cache/model'"):
            ask()
    fails_with(RuntimeError("no answer from https://user:secret@host/model\nmore"))  # of its HTTP library
    with pytest.raises(FileNotFoundError, match=r"the hub gave none \(no answer from https://\*\*\*@host/model\);"):
        from_pretrained("owner/model")
    with pytest.raises(ValueError, match=r"the hub refused 'owner/model': no answer from https://\*\*\*@host/model$"):
        push_to_hub(folder, "owner/model")


PLACES = {
    "output_dir": "/home/someone/secret/run",
    "data.train": "s3://bucket/secret/train/",
    "data.valid": "secret/valid",
    "data.remote.cache_dir": "/scratch/secret/cache",
    "autoencoder.path": "../secret/vae",
    "deepspeed.zero_optimization.offload_param.nvme_path": "C:\\Users\\secret\\nvme",
}


def test_a_model_given_away_says_nothing_of_this_machine(flow_model, tmp_path):
    """Of each place in the run's configuration the last name alone is left; what is computed stays as it is."""
    model = tmp_path / "model"
    shutil.copytree(find_model(flow_model), model)
    record = json.loads((model / CONFIG_NAME).read_text())
    for key, place in PLACES.items():
        *sections, name = key.split(".")
        tree = record["run"]
        for section in sections:
            tree[section] = tree.get(section) or {}
            tree = tree[section]
        tree[name] = place
    (model / CONFIG_NAME).write_text(json.dumps(seal(record)))
    given = save_pretrained(model, tmp_path / "given", note="Trained at commit 0123abc.")
    assert not [path.name for path in given.iterdir() if b"secret" in path.read_bytes()]
    assert "\nTrained at commit 0123abc.\n" in (given / CARD_NAME).read_text()
    run = json.loads((given / CONFIG_NAME).read_text())["run"]
    assert run["output_dir"] == "run" and run["data"]["train"] == "train" and run["autoencoder"]["path"] == "vae"
    for section in ("model", "diffusion", "sampling"):
        assert run[section] == record["run"][section]
    save_pretrained(model, model)  # where it lies
    assert (model / CONFIG_NAME).read_bytes() == (given / CONFIG_NAME).read_bytes()
    torch.testing.assert_close(forecast(from_pretrained(model)), forecast(load_forecaster(flow_model)), rtol=0, atol=0)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    folder: Path

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.partition("?")[0]
        sizes = {file.name: file.stat().st_size for file in self.folder.iterdir()} | {"harmful.py": 10}
        if path.startswith("/api/models/owner/model/tree/"):
            files = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            data = json.dumps(files).encode()
        elif path.startswith("/api/models/owner/model/"):
            files = [{"rfilename": name} for name in sizes]
            data = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": files}).encode()
        elif path.startswith(f"/owner/model/resolve/{COMMIT}/"):
            data = (self.folder / path.rpartition("/")[2]).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hash(path) & 0xFFFFFF:x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


PROGRAM = """
import sys
from dydiff_dist.forecasting import from_pretrained
for name, options in (("owner/model", {}), ("owner/model", {"local_files_only": True}), ("owner/other", {})):
    try:
        print(type(from_pretrained(name, **options)).__name__)
    except FileNotFoundError as error:
        print(error)
"""


def test_a_model_of_the_hub_is_downloaded_once_and_nothing_else_of_it(flow_model, tmp_path):
    handler = type("Handler", (Hub,), {"folder": find_model(flow_model)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path)}
    for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        environment.pop(name, None)
    environment["NO_PROXY"] = "127.0.0.1"
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    first, again, other = done.stdout.splitlines()
    assert first == again == "Forecaster", done.stderr
    assert other.startswith("no model 'owner/other': no such folder here, and the hub gave none (")
    assert not list(tmp_path.rglob("harmful.py"))


def test_without_the_package_the_line_says_what_to_install(monkeypatch, tmp_path, flow_model):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"huggingface_hub is needed: pip install 'dydiff_dist\[hub\]'"):
        from_pretrained("owner/model")
    with pytest.raises(ValueError, match="to upload a model, huggingface_hub is needed"):
        push_to_hub(save_pretrained(flow_model, tmp_path), "owner/model")
    with pytest.raises(FileNotFoundError, match="no model in"):
        push_to_hub(tmp_path / "nothing", "owner/model")
