"""A process that drives a study's store: `python -m tests.support.store_process OUT URL HANGING ...`.

Two trials run at a time. Those with a HANGING number never end.
"""

import sys
import time
from pathlib import Path

from optuna.trial import FrozenTrial

from prometar.errors import PrometarError
from tests.support.databases import open_store, report
from tune.store.storage import convert_db_errors


def drive(out: Path, url: str, hanging: set[int]) -> None:
    with convert_db_errors(url):
        store = open_store(out, url=url, trials=4)
        running: list[FrozenTrial] = []
        while True:
            while len(running) < 2:
                trial = store.ask()
                if trial is None:
                    break
                running.append(trial)
            if not running:
                return
            able = [trial for trial in running if trial.number not in hanging]
            if able:
                store.report(able[0].number, report(able[0]))
                running.remove(able[0])
            else:
                print("hanging", *(trial.number for trial in running), flush=True)
                while True:
                    store.add_seconds(0.01)
                    time.sleep(0.01)


if __name__ == "__main__":
    try:
        drive(Path(sys.argv[1]), sys.argv[2], set(map(int, sys.argv[3:])))
    except PrometarError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
