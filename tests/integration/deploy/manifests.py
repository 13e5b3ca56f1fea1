"""The Kubernetes manifests: as they lie in their files, and as a real kustomize puts them together."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.keys import make_keys

KUBERNETES = Path(__file__).parents[3] / "deploy" / "kubernetes"
AS_FILES = "files of the base"
RENDERED = ("base", "overlays/gpu", "overlays/gpu-one-node", "with rdma")
WITH_RDMA = "resources: [../gpu]\ncomponents: [../../components/rdma]\n"
RENDER_SECONDS = 60

Manifest = dict[str, Any]


class Manifests:
    def __init__(self, name: str, every: list[Manifest]) -> None:
        self.name, self.every = name, every

    def of(self, kind: str) -> dict[str, Manifest]:
        return {one["metadata"]["name"]: one for one in self.every if one["kind"] == kind}

    def pods(self) -> Iterator[tuple[str, Manifest]]:
        """(the workload's name, the pod's spec) of everything that makes pods."""
        for one in self.every:
            if one["kind"] in ("Deployment", "Job"):
                yield one["metadata"]["name"], one["spec"]["template"]["spec"]

    def settings(self, container: Manifest) -> dict[str, str]:
        """The environment that a container gets, as far as it is written here."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found |= self.of("ConfigMap")[source["configMapRef"]["name"]]["data"]
        return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def manifests_in(name: str, folder: Path) -> Manifests:
    """`name`: AS_FILES or one of RENDERED. Skips where there is no kustomize."""
    if name == AS_FILES:
        listed = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())["resources"]
        texts = [(KUBERNETES / "base" / file).read_text() for file in listed]
        return Manifests(name, [one for text in texts for one in yaml.safe_load_all(text)])
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl, which brings kustomize")
    copy = folder / "kubernetes"
    shutil.copytree(KUBERNETES, copy, ignore=shutil.ignore_patterns("keys"))
    make_keys(copy / "base" / "keys")
    if name == "with rdma":
        (copy / "overlays" / "rdma").mkdir()
        (copy / "overlays" / "rdma" / "kustomization.yaml").write_text(WITH_RDMA)
    wanted = copy / ("overlays/rdma" if name == "with rdma" else name)
    done = subprocess.run(
        ["kubectl", "kustomize", wanted], capture_output=True, text=True, timeout=RENDER_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return Manifests(name, list(yaml.safe_load_all(done.stdout)))
