"""Record -> Example, a file each kind of task: pure functions of the record and the settings."""
