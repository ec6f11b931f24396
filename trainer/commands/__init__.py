"""The verbs that compute: one small file each, a process of its own (`python -m trainer...`)."""
