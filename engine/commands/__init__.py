"""The subcommands of `misplace`: each a module with main(argv) -> exit code."""
