"""What is computed: losses, optimisers, schedules, the step of each task."""
