"""The files for `ray up`: Ray's own schema, each cloud's fields, and what must hold on all of them."""

import copy
from typing import Any

import botocore.session
import click
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.shipped import IMAGE, damaged, text_of
from tests.unit.clusters.rules import require

FILES = ("aws.yaml", "gcp.yaml", "onprem.yaml")
TOKEN = "~/.ray/auth_token"


def check_launcher(text: str) -> None:
    """Check a file for `ray up`.

    Raises:
        jsonschema.ValidationError, ValueError: what is wrong.
    """
    asked = yaml.safe_load(text)
    config: dict[str, Any] = prepare_config(copy.deepcopy(asked))
    validate_config(config)
    start = " ".join(config["head_start_ray_commands"])
    docker = config["docker"]
    setup = [commands for key, commands in config.items() if key.endswith("setup_commands")]
    require("--num-cpus=0" in start and "--num-gpus=0" in start, "the head would run trials")
    require("--dashboard-host=127.0.0.1" in start, "the dashboard is open")
    require("0.0.0.0" not in text, "the dashboard is open")
    require("--env=RAY_AUTH_MODE=token" in docker["run_options"], "there is no token")
    require(config["file_mounts"].get(TOKEN) == TOKEN, "there is no token")
    require(docker["image"] == IMAGE, "another image")
    require("--volume=/mnt/shared:/mnt/shared" in docker["run_options"], "nothing is shared")
    require(not any(setup), "the launcher installs something")
    if asked["provider"]["type"] != "local":
        _check_machines(config)


def _check_machines(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    head = types["head"]
    (worker,) = [types[name] for name in types if name != "head"]
    trials_run_on_workers = head["resources"] == {"CPU": 0, "GPU": 0} and worker["resources"]["GPU"]
    require(trials_run_on_workers, "trials run on workers with GPUs alone")
    mounts = any("/mnt/shared" in command for command in config["initialization_commands"])
    require(mounts, "nothing is mounted on /mnt/shared")
    spots = [_check_machine(config["provider"]["type"], kind["node_config"]) for kind in (head, worker)]
    require(spots == [False, True], "workers are spot machines, the head is none")


def _check_machine(cloud: str, machine: dict[str, Any]) -> bool:
    """Whether it is a spot machine."""
    if cloud == "gcp":
        return bool(machine.get("scheduling", {}).get("provisioningModel") == "SPOT")
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    machine = dict(machine)
    machine["SubnetId"], *_ = machine.pop("SubnetIds", [""])  # Ray tries them in turn
    report = ParamValidator().validate({**machine, "MinCount": 1, "MaxCount": 1}, shape.input_shape)
    if report.has_errors():
        raise ValueError(report.generate_report())
    if not machine.get("SecurityGroupIds"):
        raise ValueError("Ray would make a security group that is open to the world")
    return bool(machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot")


@pytest.mark.parametrize("name", FILES)
def test_a_launcher_file_keeps_the_head_closed_and_free_of_trials(name: str) -> None:
    check_launcher(text_of(name))


DAMAGES = [
    *(
        (name, *damage)
        for name in FILES
        for damage in (
            ("cluster_name:", "clustername:", "'clustername' was unexpected"),
            (IMAGE, "registry.example.com/prometar:latest", "another image"),
            ("--num-cpus=0", "", "head would run trials"),
            ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard is open"),
            ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "no token"),
            (f'"{TOKEN}": "{TOKEN}"', '"~/a": "~/b"', "no token"),
            ("/mnt/shared:/mnt/shared", "/tmp:/mnt/other", "nothing is shared"),
            (
                "head_start_ray_commands",
                "setup_commands: [pip install ray]\nhead_start_ray_commands",
                "install",
            ),
        )
    ),
    ("aws.yaml", "SecurityGroupIds: [YOUR_GROUP]", "", "open to the world"),
    ("aws.yaml", "HttpTokens", "HttpToken", "HttpToken"),
    ("aws.yaml", "MarketType: spot", "MarketType: capacity-block", "workers are spot"),
    ("aws.yaml", "CPU: 0, GPU: 0", "CPU: 4, GPU: 0", "on workers with GPUs alone"),
    ("gcp.yaml", "      scheduling:\n", "      schedule:\n", "workers are spot"),
    ("gcp.yaml", "CPU: 8, GPU: 1", "CPU: 8, GPU: 0", "on workers with GPUs alone"),
    ("onprem.yaml", "head_ip", "head_address", "head_ip"),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), DAMAGES)
def test_damage_is_refused(name: str, old: str, new: str, message: str) -> None:
    text = damaged(name, old, new)
    if new.startswith("setup_commands"):  # in place of the empty one
        text = text.replace("\nsetup_commands: []", "")
    with pytest.raises((jsonschema.ValidationError, click.ClickException, ValueError), match=message):
        check_launcher(text)
