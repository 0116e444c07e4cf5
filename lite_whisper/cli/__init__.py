"""The command line: a file for each command. It parses, prints and decides on exit codes; nothing below does."""
