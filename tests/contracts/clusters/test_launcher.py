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

FILES = ("aws.yaml", "gcp.yaml", "onprem.yaml")
TOKEN = "~/.ray/auth_token"


def check_launcher(text: str) -> None:
    """
    Raises:
        jsonschema.ValidationError, ValueError: what is wrong with a file for `ray up`.
    """
    asked = yaml.safe_load(text)
    config: dict[str, Any] = prepare_config(copy.deepcopy(asked))
    validate_config(config)
    start = " ".join(config["head_start_ray_commands"])
    rules = {
        "the head would run trials": all(f"--num-{kind}=0" in start for kind in ("cpus", "gpus")),
        "the dashboard is open": "--dashboard-host=127.0.0.1" in start and "0.0.0.0" not in text,
        "there is no token": "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        and config["file_mounts"].get(TOKEN) == TOKEN,
        "another image": config["docker"]["image"] == IMAGE,
        "nothing is shared": "--volume=/mnt/shared:/mnt/shared" in config["docker"]["run_options"],
        "the launcher installs something": not any(config[k] for k in config if k.endswith("setup_commands")),
    }
    for what, holds in rules.items():
        if not holds:
            raise ValueError(what)
    if asked["provider"]["type"] != "local":
        _check_machines(config)


def _check_machines(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    head = types["head"]
    (worker,) = [types[name] for name in types if name != "head"]
    if head["resources"] != {"CPU": 0, "GPU": 0} or not worker["resources"]["GPU"]:
        raise ValueError("trials run on workers with GPUs alone")
    if not any("/mnt/shared" in command for command in config["initialization_commands"]):
        raise ValueError("nothing is mounted on /mnt/shared")
    spots = [_check_machine(config["provider"]["type"], kind["node_config"]) for kind in (head, worker)]
    if spots != [False, True]:
        raise ValueError("workers are spot machines, the head is none")


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
