"""Rented machines: what SkyPilot, KubeRay and `ray up` are told, and what runs on a machine."""
