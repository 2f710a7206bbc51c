"""The `moejax` command: one file for each subcommand."""
