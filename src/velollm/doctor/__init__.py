"""What is wrong or wasteful about a machine: one check a file."""
