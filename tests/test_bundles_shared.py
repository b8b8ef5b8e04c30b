"""The three bundles as a stranger gets them: their zips in an empty folder, MONAI's own tools, one process.

Nothing puts a bundle on `sys.path` here: its configs do. The packages of the repository's bundles are set aside, so
that what runs is what the zips hold.
"""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai import bundle

from lungsynth.errors import InputError
from lungsynth.package_bundles import bundle_problems, network_problems, package_bundles, plan_publishing, zip_bundle

PACKAGES = {"lung_seg_bundle": "lung_seg", "wcapsgan_bundle": "wcapsgan", "cyclegan_bundle": "cyclegan"}
INPUTS = {"lung_seg_bundle": (1, 3, 64, 64), "wcapsgan_bundle": (2, 128), "cyclegan_bundle": (1, 1, 64, 64)}


def _own(module: str) -> bool:
    return module.split(".")[0] in PACKAGES.values()


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """A folder with the three bundles unzipped, and nothing else."""
    packaged, folder = tmp_path_factory.mktemp("packaged"), tmp_path_factory.mktemp("downloads")
    for source in package_bundles(packaged):
        with zipfile.ZipFile(zip_bundle(source)) as archive:
            archive.extractall(folder)
    modules = {name: sys.modules.pop(name) for name in list(sys.modules) if _own(name)}
    paths = list(sys.path)
    sys.path[:] = [path for path in paths if not path.rstrip("/").endswith("_bundle")]
    try:
        yield folder
    finally:
        for name in [name for name in sys.modules if _own(name)]:
            del sys.modules[name]
        sys.modules.update(modules)
        sys.path[:] = paths


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path, name: str) -> dict[str, str]:
    configs = folder / name / "configs"
    return {"config_file": str(configs / "inference.json"), "meta_file": str(configs / "metadata.json")}


@pytest.mark.parametrize("name", PACKAGES)
def test_monai_loads_checks_and_exports_a_bundle(name, downloads, empty):
    network = bundle.load(name, bundle_dir=downloads).eval()
    assert Path(sys.modules[PACKAGES[name]].__file__).is_relative_to(downloads)
    bundle.verify_net_in_out("network_def", **files(downloads, name), device="cpu", any=64)
    weights = {"ckpt_file": str(downloads / name / "models" / "model.pt")}
    bundle.ckpt_export("network_def", filepath="model.ts", **files(downloads, name), **weights)
    x = torch.rand(INPUTS[name])
    with torch.no_grad(), torch.jit.optimized_execution(False):  # or PyTorch compiles, for tens of seconds
        torch.testing.assert_close(torch.jit.load("model.ts")(x), network(x), rtol=1e-4, atol=1e-4)


TINY = {
    "lung_seg_bundle": {},
    "wcapsgan_bundle": {"size": 16, "network_def#channels": 4, "network_def#latent_dim": 8},
    "cyclegan_bundle": {"network_def#channels": 4, "network_def#dilations": [1]},
}
# The lighter exporter, which docs name for free sizes; it knows no convolution whose kernels are computed.
EXPORTER = {"use_trace": True, "converter_kwargs": {"dynamo": False}}


@pytest.mark.parametrize("name", PACKAGES)
def test_onnx_gives_what_the_network_gives(name, downloads, empty):
    onnxruntime = pytest.importorskip("onnxruntime")
    if name == "wcapsgan_bundle" and "LUNGSYNTH_TOUR" not in os.environ:
        pytest.skip("its exporter takes long; scripts/tour.sh runs it")
    parser = bundle.ConfigParser()
    parser.read_config(files(downloads, name)["config_file"])
    parser.update({"bundle_root": str(downloads / name), **TINY[name]})
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), "model.pt")
    x = torch.rand(INPUTS[name] if name != "wcapsgan_bundle" else (2, 8))
    how = {} if name == "wcapsgan_bundle" else EXPORTER
    shape = {"input_shape": list(x.shape)}
    bundle.onnx_export("network_def", "model.onnx", "model.pt", **files(downloads, name), **shape, **TINY[name], **how)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, network(x).numpy(), rtol=1e-3, atol=1e-4)


def test_all_three_run_one_after_the_other(downloads, empty):
    hu = np.random.default_rng(0).integers(-900, -700, (64, 64, 1)).astype(np.int16)
    hu[:8], hu[:2] = 40, -1000
    (empty / "images").mkdir()
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([1.4, 1.4, 5.0, 1.0])), "images/slice.nii.gz")
    settings = {
        "wcapsgan_bundle": {"count": 2},
        "cyclegan_bundle": {"dataset_dir": "images"},
        "lung_seg_bundle": {"dataset_dir": "images"},
    }
    for name, own in settings.items():
        bundle.run(**files(downloads, name), logging_file=False, output_dir=str(empty / name), **own)
    made = {path.relative_to(empty).as_posix() for path in empty.rglob("*") if path.is_file()}
    assert "wcapsgan_bundle/samples.npz" in made
    assert "lung_seg_bundle/candidates.csv" in made
    assert any(name.startswith("cyclegan_bundle/") and name.endswith(".nii.gz") for name in made)


def test_a_dry_run_of_publishing_writes_what_zoo_and_hub_get(downloads, tmp_path):
    source = shutil.copytree(downloads / "cyclegan_bundle", tmp_path / "cyclegan_bundle")
    shutil.rmtree(source / "cyclegan" / "__pycache__", ignore_errors=True)
    shutil.rmtree(source / "cyclegan" / "common" / "__pycache__", ignore_errors=True)
    (plan,) = plan_publishing([source], tmp_path / "out")
    version = json.loads((source / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    entries = json.loads((tmp_path / "out" / "model_info.json").read_text(encoding="utf-8"))
    assert list(entries) == [f"cyclegan_bundle_v{version}"]
    assert len(entries[f"cyclegan_bundle_v{version}"]["checksum"]) == 40
    card = (plan.hub_folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\ntags:\n- monai")
    assert "](docs/keys.md)" in card
    assert "push_to_hf_hub" in plan.push_command


BROKEN = {
    "LICENSE is missing": lambda root: (root / "LICENSE").unlink(),
    "changelog lacks the version 9.9.9": lambda root: _edit(root, version="9.9.9"),
    "needs an exact version": lambda root: _edit(root, monai_version=">=1.6"),
    "inputs#image": lambda root: _edit(root, network_data_format={"inputs": {}, "outputs": {}}),
    "has no sidecar": lambda root: (root / "models" / "model.json").unlink(),
    "is not the file of its sidecar": lambda root: (root / "models" / "model.pt").write_bytes(b"other"),
    "above 25": lambda root: _sparse(root / "docs" / "film.mp4"),
    "is left from a run": lambda root: (root / "runs").mkdir(),
    "names a path of one machine": lambda root: (root / "configs" / "own.json").write_text('{"a": "/home/me/data"}'),
    "lacks the sections Model Description": lambda root: (root / "docs" / "README.md").write_text("# Card"),
}


def _edit(root: Path, **values) -> None:
    path = root / "configs" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(26_000_000)


@pytest.mark.parametrize("problem", BROKEN)
def test_what_the_zoo_would_refuse_is_named(problem, tmp_path):
    (folder,) = [path for path in package_bundles(tmp_path) if path.name == "cyclegan_bundle"]
    assert bundle_problems(folder) == []
    BROKEN[problem](folder)
    assert problem in "; ".join(bundle_problems(folder))
    with pytest.raises(InputError, match="The model zoo would refuse:\n  cyclegan_bundle"):
        plan_publishing([folder], tmp_path / "out") if "LICENSE" in problem else _refuse(folder)


def _refuse(folder: Path) -> None:
    """As `plan_publishing` does, without opening the network."""
    raise InputError(f"The model zoo would refuse:\n  {folder.name}: {bundle_problems(folder)[0]}")


def test_a_config_that_gives_no_network_is_named(downloads, tmp_path):
    folder = shutil.copytree(downloads / "cyclegan_bundle", tmp_path / "cyclegan_bundle")
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["network_def"]["_target_"] = "cyclegan.network.Nothing"
    config.write_text(json.dumps(content), encoding="utf-8")
    (problem,) = network_problems(folder)
    assert problem.startswith("verify_net_in_out: ModuleNotFoundError: ")
