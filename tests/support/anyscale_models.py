"""What clusters/anyscale.yaml may say: the fields of an Anyscale job that it uses."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoResources(Strict):
    CPU: Literal[0]
    GPU: Literal[0]


class Head(Strict):
    instance_type: str
    resources: NoResources


class Workers(Strict):
    name: str
    instance_type: str
    min_nodes: Annotated[int, Field(ge=0)]
    max_nodes: Annotated[int, Field(ge=1)]
    market_type: Literal["PREFER_SPOT"]


class Compute(Strict):
    head_node: Head
    worker_nodes: list[Workers]


class Job(Strict):
    name: str
    image_uri: str
    working_dir: Literal["."]
    excludes: list[str]
    env_vars: dict[str, str]
    compute_config: Compute
    max_retries: Annotated[int, Field(ge=1)]
    entrypoint: str
