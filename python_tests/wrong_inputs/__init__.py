"""Wrong inputs, as data: a table for each area, one test for them all."""

from wrong_inputs import around, command_line, data, networks, optimizers, spaces
from wrong_inputs.table import Given, Wrong, shown, snapshot

__all__ = ["ROWS", "Given", "Wrong", "shown", "snapshot"]

ROWS: list[Wrong] = [
    row._replace(name=f"{name}-{row.name}")
    for area in (spaces, optimizers, networks, data, around, command_line)
    for name, table in area.TABLES.items()
    for row in table
]
