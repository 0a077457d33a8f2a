"""Ray's dashboard agent, where there is none: a raylet starts no worker before one has told its ports.

Run by a raylet with the session's folder and the node's id. -1 is what Ray's own agent tells where it was
installed without a dashboard. It uses little of Python, so that it takes a hundredth of that agent's time.
"""

import os
import sys
import time

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")


def tell(session: str, node: str) -> None:
    """Write each port's file, whole or not at all: the raylet reads it as soon as it is there."""
    for name in PORTS:
        path = os.path.join(session, f"{name}_{node}")
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            file.write("-1")
        os.replace(f"{path}.part", path)


if __name__ == "__main__":
    raylet = os.getppid()
    tell(*sys.argv[1:3])  # more may follow, for an agent that measures
    while os.getppid() == raylet:  # a raylet ends with its agent, and the agent with its raylet
        time.sleep(1)
