"""The forty drills as data: fault, promise, bound, and who carries it out."""

from __future__ import annotations

from launch.drills import rows_numbers, rows_outside, rows_processes, rows_storage
from launch.drills.bench import Drill

DRILLS: tuple[Drill, ...] = (
    *rows_storage.ROWS,
    *rows_processes.ROWS,
    *rows_numbers.ROWS,
    *rows_outside.ROWS,
)
