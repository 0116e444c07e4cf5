"""The command line, one module per command: parses options, prints results and sets exit codes."""
