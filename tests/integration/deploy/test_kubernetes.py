"""The Kubernetes manifests fit the published schemas, each other and the services. No cluster is asked."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cli.keys import make_keys
from services.decode.config import DecodeConfig
from services.gateway.config import GatewayConfig
from services.prefill.config import PrefillConfig
from services.scheduler.config import SchedulerConfig
from shared.kv.ledger import Ledger
from shared.specs.ids import InstanceId
from shared.telemetry.metrics import DecodeMetrics, PrefillMetrics
from shared.telemetry.settings import TelemetrySettings
from tests.integration.deploy.manifests import AS_FILES, KUBERNETES, RENDERED, Manifest, Manifests, manifests_in

ROOT = Path(__file__).parents[3]
SCHEMAS = "1.34"
CONFIGS = {"gateway": GatewayConfig, "scheduler": SchedulerConfig, "prefill": PrefillConfig, "decode": DecodeConfig}
READ_BY_OTHERS = re.compile(r"(UCX|HF|OMP|GOMP|GLIBC|OTEL|NVIDIA)_\w+")
KNOWN_CAPABILITIES = {"SYS_PTRACE", "IPC_LOCK"}


@pytest.fixture(scope="module", params=[AS_FILES, *RENDERED])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    return manifests_in(request.param, tmp_path_factory.mktemp("kubernetes"))


@pytest.fixture(scope="module", params=RENDERED)
def rendered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """Names are complete only when kustomize has put them together."""
    return manifests_in(request.param, tmp_path_factory.mktemp("kubernetes"))


class Recorded(dict[str, str]):
    """Notes which variables are asked for."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def test_every_manifest_fits_its_published_schema(manifests: Manifests):
    assert len(manifests.every) >= 16
    for one in manifests.every:
        kubernetes_validate.validate(one, SCHEMAS, strict=True)


def test_nobody_runs_as_root_or_may_write_where_it_need_not(manifests: Manifests):
    for name, pod in manifests.pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"], name
            assert not allowed["allowPrivilegeEscalation"], name
            assert allowed["capabilities"]["drop"] == ["ALL"], name
            added = set(allowed["capabilities"].get("add", []))
            assert added <= (KNOWN_CAPABILITIES if pod.get("hostPID") else set()), name


def test_what_is_stopped_has_the_time_to_finish(rendered: Manifests):
    for name, pod in rendered.pods():
        if name in CONFIGS:
            container = pod["containers"][0]
            drain = float(rendered.settings(container)["DISTSERVE_DRAIN_TIMEOUT"])
            pause = re.search(r"sleep\((\d+)\)", str(container.get("lifecycle", "")))
            before = float(pause[1]) if pause else 0.0
            assert pod["terminationGracePeriodSeconds"] >= before + drain + 10, name


def test_probes_ask_where_the_service_answers(rendered: Manifests):
    for name, pod in rendered.pods():
        if name in CONFIGS:
            container = pod["containers"][0]
            settings = rendered.settings(container)
            listening = {"metrics": settings["DISTSERVE_METRICS_PORT"], "http": settings.get("DISTSERVE_PORT")}
            ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
            assert ports == {port: listening[port] for port in ports}, name
            assert settings["DISTSERVE_METRICS_HOST"] == "0.0.0.0"
            assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
            assert container["livenessProbe"]["httpGet"]["path"] == "/health"
            probes = [container[kind]["httpGet"] for kind in container if kind.endswith("Probe")]
            assert {probe["port"] for probe in probes} <= ports.keys(), name


def test_services_know_every_setting_and_take_its_value(rendered: Manifests, tmp_path: Path):
    seed = tmp_path / "seed"
    seed.write_text("SU...")
    given, asked = set(), set()
    for name, pod in rendered.pods():
        if name in CONFIGS:
            settings = Recorded(rendered.settings(pod["containers"][0]))
            assert settings["NATS_NKEY_SEED_FILE"] == _mounted_at(pod, "key") + "/seed"
            settings["NATS_NKEY_SEED_FILE"] = str(seed)
            CONFIGS[name].from_env(settings)
            TelemetrySettings.from_env(settings)
            given |= settings.keys()
            asked |= settings.asked
    assert not [name for name in given - asked if not READ_BY_OTHERS.fullmatch(name)]


def _mounted_at(pod: Manifest, volume: str) -> str:
    return next(one["mountPath"] for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume)


def test_everything_that_is_referred_to_is_there(rendered: Manifests):
    for name, pod in rendered.pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys(), name
            rendered.settings(container)  # KeyError for a ConfigMap that is not there
            for source in (one["valueFrom"] for one in container.get("env", []) if "valueFrom" in one):
                if "configMapKeyRef" in source:
                    reference = source["configMapKeyRef"]
                    assert reference["key"] in rendered.of("ConfigMap")[reference["name"]]["data"]
                else:
                    assert source["secretKeyRef"]["optional"], name
        for volume in volumes.values():
            if "secret" in volume:
                secret = rendered.of("Secret")[volume["secret"]["secretName"]]
                assert secret["data"].keys() == {"seed"}
                assert volume["secret"]["defaultMode"] == 0o440
                assert name in volume["secret"]["secretName"], "each role has its own key"
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in rendered.of("PersistentVolumeClaim")


def test_budgets_services_and_scaling_belong_to_a_deployment(manifests: Manifests):
    deployments = manifests.of("Deployment")
    labels = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in deployments.items()}
    selectors = [
        *((name, one["spec"]["selector"]["matchLabels"]) for name, one in deployments.items()),
        *((name, one["spec"]["selector"]["matchLabels"]) for name, one in manifests.of("PodDisruptionBudget").items()),
        *((name, one["spec"]["selector"]) for name, one in manifests.of("Service").items()),
    ]
    for name, selector in selectors:
        assert selector.items() <= labels[name].items(), name
    (policy,) = manifests.of("NetworkPolicy").values()
    moves_kv = policy["spec"]["podSelector"]["matchLabels"].items()
    assert {name for name, one in labels.items() if moves_kv <= one.items()} == {"prefill", "decode"}
    assert manifests.of("PodDisruptionBudget").keys() == deployments.keys()
    for scaler in manifests.of("HorizontalPodAutoscaler").values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments


def test_to_apply_again_leaves_alone_what_the_autoscalers_have_set(manifests: Manifests):
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in manifests.of("HorizontalPodAutoscaler").values()}
    fixed = {name for name, one in manifests.of("Deployment").items() if "replicas" in one["spec"]}
    assert scaled == {"gateway", "prefill", "decode"}
    assert scaled.isdisjoint(fixed)


def test_a_job_that_is_done_goes_away_as_it_could_not_be_changed(manifests: Manifests):
    for job in manifests.of("Job").values():
        assert job["spec"]["ttlSecondsAfterFinished"] >= 1800, "the documented wait for its completion finds it"


def test_images_are_those_that_are_built_here(manifests: Manifests):
    built = {one.get("image") for one in yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()}
    for name, pod in manifests.pods():
        for container in pod["containers"]:
            assert container["image"].rpartition("/")[2].partition(":")[0] in built, name


def test_scaling_reads_metrics_that_the_adapter_makes_of_exported_ones(manifests: Manifests):
    values = yaml.safe_load((KUBERNETES / "prometheus-adapter-values.yaml").read_text())
    made = {rule["name"]["as"]: rule["seriesQuery"].partition("{")[0] for rule in values["rules"]["custom"]}
    metrics = PrefillMetrics(InstanceId("x-1"), "tiny"), DecodeMetrics(InstanceId("x-1"), "tiny")
    for one in metrics:
        one.watch(Ledger(4), running=int, waiting=int)
    exported = [one.render()[0].decode() for one in metrics]
    for scaler in manifests.of("HorizontalPodAutoscaler").values():
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods":
                series = made[metric["pods"]["metric"]["name"]]
                assert all(f"\n{series}{{" in text for text in exported), series


def test_the_gpu_overlays_ask_for_what_moving_kv_takes(rendered: Manifests):
    pods = dict(rendered.pods())
    for role in ("prefill", "decode"):
        container = pods[role]["containers"][0]
        limits, tls = container["resources"]["limits"], rendered.settings(container).get("UCX_TLS", "")
        shares = bool(pods[role].get("hostPID")) and bool(pods[role].get("hostIPC"))
        assert shares == ("cma" in tls), "CMA takes the node's namespaces"
        assert ("rdma/hca_shared_devices_a" in limits) == ("rc" in tls)
        assert ("nvidia.com/gpu" in limits) == ("cuda_copy" in tls and "cuda_ipc" not in tls)
        assert ("runtimeClassName" in pods[role]) == ("cuda_ipc" in tls)
    assert "hostPID" not in pods["gateway"]


def test_the_nats_server_takes_our_settings_before_those_of_its_chart(tmp_path: Path):
    """The chart writes the include first, then what it settles itself."""
    values = yaml.safe_load((KUBERNETES / "nats-values.yaml").read_text())
    public = make_keys(tmp_path / "keys")
    assert values["container"]["env"].keys() == public.keys()
    included = values["config"]["merge"]["$include"]
    (mount,) = (one["value"] for one in values["container"]["patch"])
    assert included == f"../{Path(mount['mountPath']).name}/nats.conf"
    (tmp_path / "nats-config").mkdir()
    (tmp_path / "nats-distserve").symlink_to(ROOT / "deploy")
    config = tmp_path / "nats-config" / "nats.conf"
    config.write_text(
        f'include "{included}"\nserver_name: nats-0\njetstream: {{store_dir: "{tmp_path}", max_file_store: 1GB}}\n'
        'cluster: {name: nats, port: 6222, no_advertise: true, routes: ["nats://nats-0.nats-headless:6222"]}\n'
    )
    done = subprocess.run(
        [Path(sys.executable).with_name("nats-server"), "-t", "-c", config],
        env=dict(public),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is valid" in done.stderr
