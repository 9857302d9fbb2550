"""Files around the package: extras, citation and workflows agree with setup.cfg and the Makefile."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    """Return setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_citation_has_the_version_and_the_licence_of_the_package(setup):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (setup["metadata"]["version"], setup["metadata"]["license"])
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert citation["references"][0]["authors"][0]["family-names"] == "Killingback"


def test_extras_named_in_messages_and_pages_exist(setup):
    extras = set(setup["options.extras_require"])
    named = set()
    for path in [
        ROOT / "README.md",
        *(ROOT / "pyterrier_hypencoder").rglob("*.py"),
        *(ROOT / "pyterrier_hypencoder").rglob("*.rst"),
    ]:
        for found in re.findall(r"pyterrier-hypencoder\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            named |= set(found.split(","))
    assert {"train", "lora"} <= named <= extras


def test_make_test_installs_no_linters(setup):
    rules = re.findall(r"^(\S+): .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    installs = {target: recipe for target, recipe in rules if "pip install" in recipe}
    assert "dev" not in installs["$(VENV)/test"] and "dev" in installs["$(VENV)/dev"]
    assert not {"ruff", "mypy"} & set(setup["options.extras_require"]["test"].split())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_existing_make_targets(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        included = job.get("strategy", {}).get("matrix", {}).get("include", [])
        named = {entry["target"] for entry in included if "target" in entry}
        named |= {found for step in job["steps"] for found in re.findall(r"^make ([\w-]+)$", step.get("run", ""))}
        assert named <= targets


def test_workflows_test_the_oldest_and_the_newest_python(setup):
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert (
        f'python: "{versions[0]}", target: test-oldest' in workflow and f'python: "{versions[-1]}", target: test}}' in workflow
    )
    assert all(name in workflow for name in ("ubuntu", "macos", "windows"))
    assert [path.stem for path in WORKFLOWS] == ["deploy", "docs", "style", "test"]


def test_index_is_uploaded_as_a_package_with_its_files(index, monkeypatch):
    import huggingface_hub

    uploaded = {}

    def upload_folder(*, folder_path, **options):
        uploaded.update({path.name: path.stat().st_size for path in Path(folder_path).iterdir()}, repo=options["repo_id"])

    for name in ("create_repo", "create_branch"):
        monkeypatch.setattr(huggingface_hub, name, lambda *args, **options: None)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    index.to_hf("user/my-index")
    assert uploaded["repo"] == "user/my-index"
    assert uploaded["artifact.tar.lz4"] > index.vectors.nbytes / 2 and "artifact.tar.lz4.json" in uploaded
