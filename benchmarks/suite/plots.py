"""`plots`: the classes of `charts`, with other images."""

from dataclasses import replace

from prometar.embedded.charts import CHARTS

PLOTS = replace(CHARTS, name="plots", counts={"train": 32, "val": 20, "test": 100})
