"""The KubeRay manifests: versions, secrets, volumes, resources; a damaged one is refused."""

import re
from typing import Any

import pytest
import yaml

from tests.support.shipped import IMAGE, RAY_VERSION, check_study, damaged, text_of

FILES = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
VOLUMES = [{"name": "shared", "persistentVolumeClaim": {"claimName": "prometar-shared"}}]
MOUNTS = [{"name": "shared", "mountPath": "/mnt/shared"}]
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|KEY", re.IGNORECASE)


def check_manifest(text: str) -> None:
    """
    Raises:
        ValueError: what is wrong with a manifest.
    """
    spec = yaml.safe_load(text)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    head = cluster["headGroupSpec"]
    (worker,) = cluster["workerGroupSpecs"]
    pods: list[dict[str, Any]] = [group["template"]["spec"] for group in (head, worker)]
    containers = [pod["containers"][0] for pod in pods]
    environment = [row for container in containers for row in container.get("env", [])]
    resources = [container["resources"] for container in containers]
    rules = {
        "another Ray": cluster["rayVersion"] == RAY_VERSION,
        "another image": {container["image"] for container in containers} == {IMAGE},
        "there is no token": cluster.get("authOptions") == {"mode": "token"},
        "the node is open": head["serviceType"] == "ClusterIP" and not any("ports" in c for c in containers),
        "the head would run trials": head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"},
        "a container may become root": all(pod["securityContext"]["runAsNonRoot"] is True for pod in pods)
        and not any(c["securityContext"]["allowPrivilegeEscalation"] for c in containers),
        "a pod would come back under its old name": cluster["autoscalerOptions"]["version"] == "v2"
        and {pod["restartPolicy"] for pod in pods} == {"Never"},
        "requests and limits differ": all(each["requests"] == each["limits"] for each in resources),
        "workers have no GPU": resources[1]["limits"].get("nvidia.com/gpu") == "1",
        "nothing is shared": all(
            pod.get("volumes") == VOLUMES and pod["containers"][0]["volumeMounts"] == MOUNTS for pod in pods
        ),
        "a secret in clear": not any("value" in row and SECRET.search(row["name"]) for row in environment),
    }
    for what, holds in rules.items():
        if not holds:
            raise ValueError(what)
    if cluster is not spec:
        check_study(spec["entrypoint"], "/mnt/shared")
        if spec["backoffLimit"] < 1:
            raise ValueError("a killed driver would not be resumed")


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_is_closed_and_shares_a_volume(name: str) -> None:
    check_manifest(text_of(name))


DAMAGES = [
    *(
        (name, *damage)
        for name in FILES
        for damage in (
            ("mode: token", "mode: disabled", "no token"),
            (IMAGE, "registry.example.com/prometar:latest", "another image"),
            ('num-cpus: "0"', 'num-cpus: "4"', "head would run trials"),
            ("serviceType: ClusterIP", "serviceType: LoadBalancer", "node is open"),
            ("claimName: prometar-shared", "claimName: another", "nothing is shared"),
            ("memory: 8Gi}", "memory: 9Gi}", "requests and limits differ"),
            ("runAsNonRoot: true", "runAsNonRoot: false", "become root"),
        )
    ),
    *(
        ("kuberay/rayjob.yaml", *damage)
        for damage in (
            (
                "valueFrom:\n                    secretKeyRef: {name: prometar-db, key: password}",
                "value: hunter2",
                "a secret in clear",
            ),
            ("prometar@YOUR_DATABASE", "prometar:hunter2@YOUR_DATABASE", "shows a password"),
            ("--out /mnt/shared/out", "--out /home/ray/out", "--out /home/ray/out is lost with the cluster"),
            ("--address auto", "", "Ray of its own"),
            ("--dataset dtd", "--dataset dtd --trails 3", "No such option"),
        )
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), DAMAGES)
def test_damage_is_refused(name: str, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_manifest(damaged(name, old, new))
