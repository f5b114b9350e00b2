"""The `latentgen` command: one module a subcommand, each imported when it is asked for."""
