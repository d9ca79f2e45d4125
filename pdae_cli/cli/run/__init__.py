"""The batch runner: from what a user names to outputs, records and an exit code."""
