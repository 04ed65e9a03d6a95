"""The commands: configs, jobs and sweeps around the work; knows all other folders."""
