"""Sends a job of another verb to a cluster: Ray's own, Slurm, Kubernetes (KubeRay), a cloud (SkyPilot)."""
