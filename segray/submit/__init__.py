"""Submit a job of another verb to a cluster: Ray's job server, Slurm, KubeRay or SkyPilot."""
