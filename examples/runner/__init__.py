"""What stands behind the example commands: from the command line to the table of results, one idea per file."""
