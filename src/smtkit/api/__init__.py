"""The stages as functions of Python, with the settings of the command line as keywords."""
