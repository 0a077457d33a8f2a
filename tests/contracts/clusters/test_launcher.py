"""Files for `ray up` in clusters/: they fit Ray's schema and the fields of their cloud, and are secure."""

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

    Args:
        text: Content of the file.

    Raises:
        jsonschema.ValidationError: The file does not fit Ray's schema.
        ValueError: A cluster of this file would not be secure, or not run trials as intended.
    """
    given = yaml.safe_load(text)
    config: dict[str, Any] = prepare_config(copy.deepcopy(given))
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
    if given["provider"]["type"] != "local":
        _check_machines(config)


def _check_machines(config: dict[str, Any]) -> None:
    """Check the head and the kind of workers that a file starts in a cloud."""
    types = config["available_node_types"]
    head = types["head"]
    (worker,) = [types[name] for name in types if name != "head"]
    head_runs_nothing = head["resources"] == {"CPU": 0, "GPU": 0}
    worker_has_gpus = worker["resources"]["GPU"] > 0
    require(head_runs_nothing and worker_has_gpus, "trials run on workers with GPUs alone")
    mounts = any("/mnt/shared" in command for command in config["initialization_commands"])
    require(mounts, "nothing is mounted on /mnt/shared")
    cloud = config["provider"]["type"]
    require(not _is_spot_machine(cloud, head["node_config"]), "the head is a spot machine")
    require(_is_spot_machine(cloud, worker["node_config"]), "workers are not spot machines")


def _is_spot_machine(cloud: str, machine: dict[str, Any]) -> bool:
    """Return whether a machine is a spot machine. Check the fields of machines of AWS.

    Args:
        cloud: "aws" or "gcp".
        machine: Fields of the machine.

    Raises:
        ValueError: A field is invalid, or a machine of AWS has no security group.
    """
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


# Text of a file, what replaces it, and a part of the message that must follow.
DAMAGES_OF_ALL_FILES = [
    ("cluster_name:", "clustername:", "'clustername' was unexpected"),
    (IMAGE, "registry.example.com/prometar:latest", "another image"),
    ("--num-cpus=0", "", "head would run trials"),
    ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard is open"),
    ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "no token"),
    (f'"{TOKEN}": "{TOKEN}"', '"~/a": "~/b"', "no token"),
    ("/mnt/shared:/mnt/shared", "/tmp:/mnt/other", "nothing is shared"),
    ("head_start_ray_commands", "setup_commands: [pip install ray]\nhead_start_ray_commands", "install"),
]
DAMAGES_OF_ONE_FILE = [
    ("aws.yaml", "SecurityGroupIds: [YOUR_GROUP]", "", "open to the world"),
    ("aws.yaml", "HttpTokens", "HttpToken", "HttpToken"),
    ("aws.yaml", "MarketType: spot", "MarketType: capacity-block", "workers are not spot"),
    ("aws.yaml", "CPU: 0, GPU: 0", "CPU: 4, GPU: 0", "on workers with GPUs alone"),
    ("gcp.yaml", "      scheduling:\n", "      schedule:\n", "workers are not spot"),
    ("gcp.yaml", "CPU: 8, GPU: 1", "CPU: 8, GPU: 0", "on workers with GPUs alone"),
    ("onprem.yaml", "head_ip", "head_address", "head_ip"),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("old", "new", "message"), DAMAGES_OF_ALL_FILES)
def test_a_damage_that_is_possible_in_each_file_is_refused(
    name: str, old: str, new: str, message: str
) -> None:
    text = damaged(name, old, new)
    if new.startswith("setup_commands"):
        text = text.replace("\nsetup_commands: []", "")  # a key may occur only once
    require_refusal(text, message)


@pytest.mark.parametrize(("name", "old", "new", "message"), DAMAGES_OF_ONE_FILE)
def test_a_damage_of_one_file_is_refused(name: str, old: str, new: str, message: str) -> None:
    require_refusal(damaged(name, old, new), message)


def require_refusal(text: str, message: str) -> None:
    """Check that `check_launcher` refuses a file with a message."""
    with pytest.raises((jsonschema.ValidationError, click.ClickException, ValueError), match=message):
        check_launcher(text)
