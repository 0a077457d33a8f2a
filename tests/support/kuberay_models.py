"""What the manifests of clusters/kuberay/ may say: the fields of KubeRay and Kubernetes that they use."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

_UNITS = {
    "": 1.0,
    "m": 1e-3,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
}
_SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|KEY", re.IGNORECASE)


def amount(quantity: str) -> float:
    """A Kubernetes quantity as a number: 0.5 of "500m".

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", quantity)
    if not match or match[2] not in _UNITS:
        raise ValueError(f"'{quantity}' is no quantity")
    return float(match[1]) * _UNITS[match[2]]


def _quantity(text: str) -> str:
    amount(text)
    return text


Quantity = Annotated[str, AfterValidator(_quantity)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]

    @model_validator(mode="after")
    def _limits_hold(self) -> "Resources":
        if self.requests.keys() != self.limits.keys():
            raise ValueError("requests and limits name different resources")
        for name, request in self.requests.items():
            limit = self.limits[name]
            if amount(request) > amount(limit) or ("/" in name and request != limit):
                raise ValueError(f"{name}: the request {request} does not go with the limit {limit}")
        return self


class SecretKeyRef(Strict):
    name: str
    key: str


class EnvSource(Strict):
    secretKeyRef: SecretKeyRef


class EnvVar(Strict):
    name: str
    value: str | None = None
    valueFrom: EnvSource | None = None

    @model_validator(mode="after")
    def _secrets_are_referenced(self) -> "EnvVar":
        if (self.value is None) == (self.valueFrom is None):
            raise ValueError(f"{self.name}: give a value or where it comes from")
        if self.value is not None and _SECRET.search(self.name):
            raise ValueError(f"{self.name} is a secret in clear: name it by secretKeyRef")
        return self


class VolumeMount(Strict):
    name: str
    mountPath: Annotated[str, Field(pattern="^/")]


class Claim(Strict):
    claimName: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: Literal[False]


class Container(Strict):
    """No ports: a hostPort would open the node, and KubeRay names the service's own."""

    name: str
    image: str
    securityContext: ContainerSecurity
    env: list[EnvVar] = []
    resources: Resources
    volumeMounts: list[VolumeMount]


class PodSecurity(Strict):
    runAsNonRoot: Literal[True]
    runAsUser: Annotated[int, Field(gt=0)]
    fsGroup: int


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    restartPolicy: Literal["Never"]
    securityContext: PodSecurity
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]
    volumes: list[Volume]
    tolerations: list[Toleration] = []

    @model_validator(mode="after")
    def _mounts_are_volumes(self) -> "PodSpec":
        volumes = {volume.name for volume in self.volumes}
        for mount in self.containers[0].volumeMounts:
            if mount.name not in volumes:
                raise ValueError(f"{mount.mountPath}: there is no volume '{mount.name}'")
        return self

    def shared(self) -> set[str]:
        """The folders that outlive the pod."""
        return {mount.mountPath for mount in self.containers[0].volumeMounts}

    def gpus(self) -> float:
        return amount(self.containers[0].resources.limits.get("nvidia.com/gpu", "0"))


class PodTemplate(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _head_runs_no_trial(self) -> "HeadGroup":
        if self.rayStartParams.get("num-cpus") != "0" or self.template.spec.gpus():
            raise ValueError("the head would run trials: num-cpus must be '0', and it needs no GPU")
        if self.rayStartParams.get("num-gpus") != "0":  # an image of CUDA's sees all of a node's where it may
            raise ValueError("the head would count its node's GPUs: num-gpus must be '0'")
        return self


class WorkerGroup(Strict):
    groupName: str
    replicas: int
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _scales(self) -> "WorkerGroup":
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: replicas lie between minReplicas and maxReplicas")
        if not self.template.spec.gpus():
            raise ValueError(f"{self.groupName}: the workers have no GPU")
        return self


class AuthOptions(Strict):
    mode: Literal["token"]


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    idleTimeoutSeconds: int
    resources: Resources


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]

    @model_validator(mode="after")
    def _agrees(self) -> "ClusterSpec":
        for image in self.images():
            if f":ray{self.rayVersion}-" not in image:
                raise ValueError(f"the image {image} is not of Ray {self.rayVersion}")
        head = self.headGroupSpec.template.spec
        if any(worker.template.spec.volumes != head.volumes for worker in self.workerGroupSpecs):
            raise ValueError("head and workers share no volume")
        return self

    def images(self) -> list[str]:
        pods = [self.headGroupSpec.template, *(worker.template for worker in self.workerGroupSpecs)]
        return [pod.spec.containers[0].image for pod in pods]


class JobSpec(Strict):
    backoffLimit: Annotated[int, Field(ge=1)]
    entrypoint: str
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: int
    submissionMode: Literal["K8sJobMode"]
    runtimeEnvYAML: str
    rayClusterSpec: ClusterSpec


class Metadata(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec

    def cluster(self) -> ClusterSpec:
        return self.spec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec

    def cluster(self) -> ClusterSpec:
        return self.spec.rayClusterSpec


_MANIFEST: TypeAdapter[RayCluster | RayJob] = TypeAdapter(
    Annotated[RayCluster | RayJob, Field(discriminator="kind")]
)


def parse_manifest(content: Any) -> RayCluster | RayJob:
    """A manifest, by its kind.

    Raises:
        pydantic.ValidationError: an unknown field, a wrong value, or parts that do not agree.
    """
    return _MANIFEST.validate_python(content)
