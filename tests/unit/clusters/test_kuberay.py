"""The KubeRay manifests: versions, secrets, volumes and resources. A damaged manifest is refused."""

import re
from typing import Any

import pytest
import yaml

from tests.support.shipped import IMAGE, RAY_VERSION, check_study, damaged, text_of
from tests.unit.clusters.rules import require

FILES = ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml")
VOLUMES = [{"name": "shared", "persistentVolumeClaim": {"claimName": "prometar-shared"}}]
MOUNTS = [{"name": "shared", "mountPath": "/mnt/shared"}]
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|KEY", re.IGNORECASE)
"""Parts of the names of environment variables that hold secrets."""


def check_manifest(text: str) -> None:
    """Check a KubeRay manifest.

    Raises:
        ValueError: the manifest breaks a rule. The message states the problem.
    """
    spec = yaml.safe_load(text)["spec"]
    is_job = "rayClusterSpec" in spec
    cluster = spec["rayClusterSpec"] if is_job else spec
    head = cluster["headGroupSpec"]
    [workers] = cluster["workerGroupSpecs"]
    require(cluster["rayVersion"] == RAY_VERSION, "another Ray")
    require(cluster.get("authOptions") == {"mode": "token"}, "there is no token")
    require(head["serviceType"] == "ClusterIP", "the head is reachable from outside the cluster")
    require(head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}, "the head would run trials")
    # Only version 2 of the autoscaler replaces a failed pod by one with another name.
    require(cluster["autoscalerOptions"]["version"] == "v2", "a pod would come back under its old name")
    for group in (head, workers):
        check_pod(group["template"]["spec"])
    [worker] = workers["template"]["spec"]["containers"]
    require(worker["resources"]["limits"].get("nvidia.com/gpu") == "1", "workers have no GPU")
    if is_job:
        check_study(spec["entrypoint"], "/mnt/shared")
        require(spec["backoffLimit"] >= 1, "a killed driver would not be resumed")


def check_pod(pod: dict[str, Any]) -> None:
    """Check the specification of a pod, which must have one container.

    Raises:
        ValueError: the pod breaks a rule. The message states the problem.
    """
    [container] = pod["containers"]
    resources = container["resources"]
    require(container["image"] == IMAGE, "another image")
    require("ports" not in container, "a container opens ports")
    require(pod["restartPolicy"] == "Never", "a pod would come back under its old name")
    require(pod["securityContext"]["runAsNonRoot"] is True, "a container may become root")
    may_escalate = container["securityContext"]["allowPrivilegeEscalation"]
    require(may_escalate is False, "a container may become root")
    require(resources["requests"] == resources["limits"], "requests and limits differ")
    require(pod.get("volumes") == VOLUMES, "nothing is shared")
    require(container["volumeMounts"] == MOUNTS, "nothing is shared")
    for variable in container.get("env", []):
        if SECRET.search(variable["name"]):
            require("value" not in variable, "the manifest shows a secret")


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_is_closed_and_shares_a_volume(name: str) -> None:
    check_manifest(text_of(name))


COMMON_DAMAGES = [
    ("mode: token", "mode: disabled", "no token"),
    (IMAGE, "registry.example.com/prometar:latest", "another image"),
    ('num-cpus: "0"', 'num-cpus: "4"', "head would run trials"),
    ("serviceType: ClusterIP", "serviceType: LoadBalancer", "head is reachable"),
    ("claimName: prometar-shared", "claimName: another", "nothing is shared"),
    ("memory: 8Gi}", "memory: 9Gi}", "requests and limits differ"),
    ("runAsNonRoot: true", "runAsNonRoot: false", "become root"),
]
"""Text that both manifests contain, its replacement, and the problem that results."""

PASSWORD_FROM_SECRET = """valueFrom:
                    secretKeyRef: {name: prometar-db, key: password}"""
"""Lines of the manifest of a job, with their indentation."""

JOB_DAMAGES = [
    (PASSWORD_FROM_SECRET, "value: hunter2", "the manifest shows a secret"),
    ("prometar@YOUR_DATABASE", "prometar:hunter2@YOUR_DATABASE", "shows a password"),
    ("--out /mnt/shared/out", "--out /home/ray/out", "--out /home/ray/out is lost with the cluster"),
    ("--address auto", "", "Ray of its own"),
    ("--dataset dtd", "--dataset dtd --trails 3", "No such option"),
]
"""The same for the manifest of a job, which also contains the command of a study and its password."""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("old", "new", "problem"), COMMON_DAMAGES)
def test_damage_of_a_manifest_is_refused(name: str, old: str, new: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_manifest(damaged(name, old, new))


@pytest.mark.parametrize(("old", "new", "problem"), JOB_DAMAGES)
def test_damage_of_the_command_of_a_job_is_refused(old: str, new: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_manifest(damaged("kuberay/rayjob.yaml", old, new))
