"""The KubeRay manifests: fields, quantities, volumes, versions, secrets; a damaged one is refused."""

import pytest
import yaml

from tests.support.kuberay_models import RayCluster, RayJob, amount, parse_manifest
from tests.support.shipped import IMAGE, RAY_VERSION, check_study, damaged, text_of

FILES = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")


def check_manifest(text: str) -> RayCluster | RayJob:
    """A manifest that agrees with the rest of the project.

    Raises:
        ValueError: it does not (pydantic's ValidationError is one).
    """
    manifest = parse_manifest(yaml.safe_load(text))
    cluster = manifest.cluster()
    if cluster.rayVersion != RAY_VERSION or set(cluster.images()) != {IMAGE}:
        raise ValueError(f"not the project's Ray: {cluster.rayVersion}, {cluster.images()}")
    if isinstance(manifest, RayJob):
        (shared,) = cluster.headGroupSpec.template.spec.shared()
        check_study(manifest.spec.entrypoint, shared)
        yaml.safe_load(manifest.spec.runtimeEnvYAML)["env_vars"]["PYTHONUNBUFFERED"]
    return manifest


@pytest.mark.parametrize("name", FILES)
def test_manifest(name: str) -> None:
    check_manifest(text_of(name))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("authOptions:", "authOption:", "Extra inputs are not permitted"),
        ("mode: token", "mode: disabled", "Input should be 'token'"),
        ("version: v2", "version: v1", "Input should be 'v2'"),
        ('rayVersion: "2.60.0"', 'rayVersion: "2.59.0"', "is not of Ray 2.59.0"),
        (IMAGE, "registry.example.com/prometar:latest", "is not of Ray 2.60.0"),
        ('num-cpus: "0"', 'num-cpus: "4"', "head would run trials"),
        ('num-cpus: "0"', "num-cpus: 0", "valid string"),
        ('num-gpus: "0"', "", "head would count its node's GPUs"),
        ("serviceType: ClusterIP", "serviceType: LoadBalancer", "Input should be 'ClusterIP'"),
        ("volumes:\n", "volume:\n", "Extra inputs are not permitted"),
        ("{name: shared, mountPath", "{name: sharde, mountPath", "there is no volume 'sharde'"),
        ("claimName: prometar-shared", "claimName: another", "share no volume"),
        ("memory: 8Gi}", "memory: 8GiB}", "'8GiB' is no quantity"),
        ('{cpu: "2", memory: 8Gi}', '{cpu: "3", memory: 8Gi}', "request 3 does not go with the limit 2"),
        ('nvidia.com/gpu: "1"', 'nvidia.com/gpu: "0"', "request 0 does not go with the limit 1"),
        ("runAsNonRoot: true", "runAsNonRoot: false", "Input should be True"),
        ("maxReplicas: 8", "maxReplicas: -1", "replicas lie between"),
        ("restartPolicy: Never", "restartPolicy: Always", "Input should be 'Never'"),
    ],
)
def test_damage_is_refused(name: str, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_manifest(damaged(name, old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("valueFrom:\n                    secretKeyRef: {name: prometar-db, key: password}",
         "value: hunter2", "is a secret in clear"),
        ("prometar@YOUR_DATABASE", "prometar:hunter2@YOUR_DATABASE", "shows a password"),
        ("--out /mnt/shared/out", "--out /home/ray/out", "--out /home/ray/out is lost with the cluster"),
        ("--address auto", "", "Ray of its own"),
        ("backoffLimit: 4", "backoffLimit: 0", "greater than or equal to 1"),
        ("name: prometar-dtd", "name: prometar_dtd", "should match pattern"),
    ],
)  # fmt: skip
def test_damage_of_the_job_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_manifest(damaged("kuberay/rayjob.yaml", old, new))


@pytest.mark.parametrize("option", ["--trails 3", "--epochs two"])
def test_an_entrypoint_that_search_py_does_not_take_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"No such option|valid integer"):
        check_manifest(damaged("kuberay/rayjob.yaml", "--dataset dtd", f"--dataset dtd {option}"))


def test_a_port_of_the_node_is_refused() -> None:
    content = yaml.safe_load(text_of("kuberay/raycluster.yaml"))
    container = content["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["ports"] = [{"containerPort": 8265, "hostPort": 8265}]
    with pytest.raises(ValueError, match=r"ports\n  Extra inputs are not permitted"):
        check_manifest(yaml.safe_dump(content))


@pytest.mark.parametrize(("text", "value"), [("500m", 0.5), ("2", 2), ("1Gi", 2**30), ("1.5k", 1500)])
def test_quantities(text: str, value: float) -> None:
    assert amount(text) == value
