"""The commands of ``confide``. Each module adds its parser and runs its command; none prints a traceback."""
