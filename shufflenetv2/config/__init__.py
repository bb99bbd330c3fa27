"""Every option of the program."""
