"""What a Google Cloud machine of clusters/gcp.yaml may say; of AWS, boto knows every field itself."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DiskParams(Strict):
    diskSizeGb: Annotated[int, Field(ge=50)]
    diskType: Annotated[str, Field(pattern=r"^zones/[^/]+/diskTypes/pd-(balanced|ssd)$")]  # what a g2 takes
    sourceImage: str


class Disk(Strict):
    boot: Literal[True]
    autoDelete: Literal[True]
    type: Literal["PERSISTENT"]
    initializeParams: DiskParams


class Tags(Strict):
    items: Annotated[list[str], Field(min_length=1)]


class AccessConfig(Strict):
    name: str
    type: Literal["ONE_TO_ONE_NAT"]


class Network(Strict):
    subnetwork: Annotated[str, Field(pattern=r"^projects/[^/]+/regions/[^/]+/subnetworks/[^/]+$")]
    accessConfigs: list[AccessConfig] = []


class Scheduling(Strict):
    provisioningModel: Literal["SPOT"]
    instanceTerminationAction: Literal["DELETE"]
    onHostMaintenance: Literal["TERMINATE"]  # a machine with a GPU cannot move
    automaticRestart: Literal[False]  # which spot demands


class Machine(Strict):
    """A field of the Compute Engine API's instance; `scheduling` is what makes it a spot machine."""

    machineType: str
    disks: list[Disk]
    tags: Tags
    networkInterfaces: Annotated[list[Network], Field(min_length=1, max_length=1)]
    scheduling: Scheduling | None = None
